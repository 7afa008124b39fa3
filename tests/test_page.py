"""The page's files: what they hold, that nothing in a record becomes markup or a path, that they are replaced whole."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tables import asked, pair, pairs, paper
from test_leaderboard import record, seeds

from harness.cli import main as cli
from harness.cli import page as cli_page
from harness.errors import UserError
from harness.records import Record, write_record
from leaderboard.page import curves as page_curves
from leaderboard.page.build import write_page
from leaderboard.page.content import Picture, content
from leaderboard.page.curves import MOST_POINTS, MOST_TERMS, curve
from leaderboard.page.site import SCRIPTS, STYLES, script_json
from leaderboard.render import render
from leaderboard.table import rows_and_columns

PACKAGE = Path(page_curves.__file__).parent
HOSTILE = '</script><img src=x onerror="bench.hit=1">\u2028=1+1{{board}}'


def workspace(folder: Path, records: list[Record]) -> Path:
    for one in records:
        write_record(folder / "records", one)
    return folder


def log(workspace: Path, run_id: str, lines: list[Any]) -> None:
    folder = workspace / "students" / run_id
    folder.mkdir(parents=True)
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "train.jsonl").write_text(text)


def board(page: Path) -> dict[str, Any]:
    """The block of data of an index.html, as a browser's JSON.parse reads it."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def detail(page: Path, row: dict[str, Any]) -> dict[str, Any]:
    text = (page.parent / "details" / f"{row['detail']}.js").read_text()
    found = re.fullmatch(r'bench\.detail\("(\w+)",(".*")\);\n', text)
    assert found is not None and found[1] == row["detail"]
    return json.loads(json.loads(found[2]))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- what it shows


def test_the_page_shows_what_the_table_says():
    found = content(pairs(), title="w")
    whole = rows_and_columns(pairs(), metrics="all")
    assert len(found.board["sections"]) == len(whole.sections) == 2
    for mine, section in zip(found.board["sections"], whole.sections, strict=True):
        assert [row["label"] for row in mine["rows"]] == [row.label for row in section.rows]
        assert [row["rank"] for row in mine["rows"]] == [row.average_rank for row in section.rows]
        for line, cells, missing in zip(mine["cells"], section.cells, section.missing, strict=True):
            for shown, cell, why in zip(line, cells, missing, strict=True):
                if cell is None:
                    assert shown == why
                else:
                    assert shown[:3] == [cell.mean, cell.spread, cell.n]
                    assert shown[5] == (2 if cell.best else 1 if cell.second else 0)


def test_numbers_are_written_as_in_the_tables():
    section = content(pair(), title="w").board["sections"][0]
    place = next(i for i, row in enumerate(section["rows"]) if row["label"] == "fitnet")
    top1 = next(j for j, column in enumerate(section["columns"]) if column["metric"] == "top1")
    assert section["cells"][place][top1][3:5] == ["71.0", "1.0"]
    assert [c["main"] for c in section["columns"] if c["metric"] in ("top1", "top5")] == [True, False]


def test_a_row_tells_its_seeds_and_all_that_decided_them(tmp_path):
    page = write_page(workspace(tmp_path / "w", pair()), tmp_path / "page")
    section = board(page)["sections"][0]
    singer = next(row for row in section["rows"] if row["label"] == "singer")
    found = detail(page, singer)
    assert [run["seed"] for run in found["runs"]] == [0, 1, 2]
    assert [run["values"]["cls top1"] for run in found["runs"]] == [0.74, 0.73, 0.75]
    assert found["runs"][0]["spec"]["method"] == "singer"
    protocol = board(page)["protocols"][section["columns"][0]["protocol"]]
    assert json.loads(protocol["text"]) == {"set": "cls"}


def test_time_is_the_students_own_and_its_share_of_the_teachers():
    section = content(pair(), title="w").board["sections"][0]
    fitnet = next(row for row in section["rows"] if row["label"] == "fitnet")
    assert fitnet["costs"]["hours"][0] == pytest.approx((10 + 100 / 2) / 3600)
    assert fitnet["costs"]["method_parameters"] == [12_345, "0.0123"]
    assert next(row for row in section["rows"] if row["label"] == "singer")["costs"] == {}


def test_failures_and_students_without_results_are_told():
    found = content(pair(), title="w", asked=asked(), problems=["x.json: cut short"])
    section = found.board["sections"][0]
    row = next(row for row in section["rows"] if row["label"] == "vitkd")
    assert found.details[row["detail"]]["failures"] == [[0, "at step 7: loss kd is nan"]]
    assert any("later" in line for line in section["legend"])
    assert any("x.json" in line for line in found.board["notes"])


def test_published_numbers_stand_beside_as_reported():
    rows = [row for section in content(paper(), title="w").board["sections"] for row in section["rows"]]
    reported = [row for row in rows if row["reported"]]
    assert {"fitnet", "singer", "vitkd"} <= {row["label"] for row in reported}
    assert all("arXiv" in row["source"] and row["rank"] is None and row["seeds"] is None for row in reported)


def halves() -> list[Record]:
    """Eight tasks on which a's mean rank is 17 / 8: halfway, where Python rounds to 2.12 and JavaScript to 2.13."""
    found = []
    for task in range(8):
        middle = 0.5 if task else 0.1
        for label, value in (("a", middle), ("b", 0.9), ("c", 0.2)):
            found += seeds(label, value, value, task=f"task{task}")
    return found


def test_ranks_are_rounded_as_in_the_tables():
    section = content(halves(), title="w").board["sections"][0]
    assert {row["label"]: row["rank_text"] for row in section["rows"]} == {"b": "1.00", "a": "2.12", "c": "2.88"}
    plain = render(rows_and_columns(halves()), "plain")
    assert all(
        re.search(rf"^{label} .* {rank}$", plain, re.MULTILINE) for label, rank in (("a", "2.12"), ("c", "2.88"))
    )


def test_each_number_has_the_time_and_the_machine_of_its_own_evaluation():
    one = record("a").model_copy(update={"environment": {"host": "x"}, "created": "2026-01-02T00:00:00+00:00"})
    other = record("a", 0, 0.4, task="other", run=one.run.id)
    other = other.model_copy(update={"environment": {"host": "y"}, "created": "2026-01-01T00:00:00+00:00"})
    (found,) = content([one, other], title="w").details
    (run,) = found["runs"]
    said = {e["task_id"]: (e["created"][:10], found["environments"][e["environment"]]) for e in run["evaluations"]}
    assert said == {one.task_id: ("2026-01-02", {"host": "x"}), other.task_id: ("2026-01-01", {"host": "y"})}
    (same,) = content([one, other.model_copy(update={"environment": {"host": "x"}})], title="w").details
    assert same["environments"] == [{"host": "x"}]


def test_the_order_of_the_records_changes_nothing():
    assert content(pairs(), title="w") == content(pairs()[::-1], title="w")


def test_differences_and_the_rank_diagram_are_there(tmp_path):
    page = write_page(workspace(tmp_path / "w", pair()), tmp_path / "page")
    section = board(page)["sections"][0]
    assert section["differences"]["method"] == "singer"
    assert section["differences"]["statements"]
    assert {line[0] for line in section["differences"]["pairs"]} == {"fitnet", "logit_kd", "crd"}
    assert (page.parent / section["diagram"]["file"]).read_text().startswith("<svg")


# ---- curves


def test_a_curve_is_thinned_out_to_its_last_step(tmp_path):
    log(tmp_path, "a", [{"step": step, "kd": 2.0 * step, "loss": step / 3} for step in range(1, 1001)])
    found = curve(tmp_path, "a")
    assert found is not None and list(found) == ["step", "loss", "kd"]
    assert len(found["step"]) == MOST_POINTS
    assert (found["step"][0], found["step"][-1], found["loss"][-1]) == (1, 1000, 333.33)


def test_a_curve_of_broken_lines_keeps_what_can_be_read(tmp_path):
    lines = [
        {"step": 1, "loss": 1.0},
        '{"step": 2, "loss": NaN}',
        '{"step": 3, "lo',
        {"step": "four", "loss": 1.0},
        [1, 2],
        '{"step": 5, "loss": 1e999}',
        {"step": 6, "loss": True, "huge": 10**400},
    ]
    log(tmp_path, "a", lines)
    assert curve(tmp_path, "a") == {"step": [1, 2, 5, 6], "loss": [1.0, None, None, None], "huge": [None] * 4}


def test_few_terms_of_many_are_kept_the_loss_among_them(tmp_path):
    log(tmp_path, "a", [{"step": 1, **{f"t{i}": 1.0 for i in range(40)}, "loss": 2.0}])
    found = curve(tmp_path, "a")
    assert found is not None and len(found) == 1 + MOST_TERMS and "loss" in found


@pytest.mark.parametrize("run_id", ["../students/a", "a/../a", "..", "", "/etc", "a\0"])
def test_a_runs_name_never_leads_to_another_folder(tmp_path, run_id):
    log(tmp_path, "a", [{"step": 1, "loss": 1.0}])
    assert curve(tmp_path, "a") is not None
    assert curve(tmp_path, run_id) is None


def test_no_log_is_no_curve(tmp_path):
    assert curve(tmp_path, "a") is None
    log(tmp_path, "b", ["nothing"])
    assert curve(tmp_path, "b") is None


# ---- what is hostile stays text


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def hostile() -> list[Record]:
    return [
        *seeds(HOSTILE, 0.5, 0.6, task=HOSTILE, hyperparameters={"__proto__": HOSTILE, HOSTILE: 10**400}),
        *seeds("plain", 0.5, 1e150, task=HOSTILE),
        record("=1+1", value=-1e150, task=HOSTILE, teacher=HOSTILE),
    ]


def test_hostile_names_make_no_element_of_the_page(tmp_path):
    plain = write_page(workspace(tmp_path / "w", pair()), tmp_path / "plain")
    page = write_page(workspace(tmp_path / "<b>w", hostile()), tmp_path / "page")
    tags = []
    for one in (plain, page):
        parser = Tags()
        parser.feed(one.read_text())
        tags.append([tag for tag, _ in parser.found])
    assert tags[0] == tags[1]
    assert board(page)["sections"][0]["rows"][0]["label"]
    for path in (page.parent / "details").iterdir():
        text = path.read_text()
        assert text.isascii() and "<" not in text and len(text.splitlines()) == 1


@pytest.mark.parametrize("text", [HOSTILE, "<!--", "]]>", "\u2029", "\ud800", "&lt;", "\\u003c"])
def test_json_in_a_script_is_the_same_value_without_markup(text):
    written = script_json([text])
    assert json.loads(written) == [text]
    assert written.isascii() and not set("<>&") & set(written)


# ---- the folder


def test_nothing_comes_from_outside(tmp_path):
    page = write_page(workspace(tmp_path / "w", pair()), tmp_path / "page")
    parser = Tags()
    parser.feed(page.read_text())
    addresses = [value for _, attrs in parser.found for name, value in attrs.items() if name in ("src", "href")]
    assert len(addresses) > 8
    for address in addresses:
        assert address is not None
        assert address.startswith(("#", "data:,")) or (page.parent / address).is_file(), address
    for name in (*SCRIPTS, *STYLES):
        text = (PACKAGE / name).read_text(encoding="utf-8")
        assert "sourceMappingURL" not in text
        assert not re.search(r"@import|url\(\s*['\"]?http|importScripts|fetch\(\s*['\"]http", text)


def test_the_same_records_make_the_same_bytes(tmp_path):
    home = workspace(tmp_path / "w", pairs())
    one = write_page(home, tmp_path / "one").parent
    assert files(one) == files(write_page(home, tmp_path / "two").parent)
    before = files(one)
    write_page(home, one)
    assert files(one) == before


def test_a_newer_page_keeps_the_files_of_the_one_before_and_no_others(tmp_path):
    home, folder = workspace(tmp_path / "w", pair()), tmp_path / "page"
    (tmp_path / "page").mkdir()
    generations = []
    for i in range(3):
        write_page(workspace(home, [record("singer", value=0.1 * i)]), folder)
        generations.append(set(json.loads((folder / "page.json").read_text())["files"]))
    there = {name for name in files(folder) if "/" in name}
    assert there == generations[1] | generations[2]
    assert generations[0] - there


def test_a_page_that_fails_midway_leaves_the_old_one_whole(tmp_path, monkeypatch):
    home, folder = workspace(tmp_path / "w", pair()), tmp_path / "page"
    write_page(home, folder)
    before = files(folder)
    workspace(home, [*seeds("more", 0.1, 0.2), *seeds("most", 0.1, 0.2)])
    from leaderboard.page import site

    real, left = site._put, [1]

    def full(path: Path, data: bytes) -> None:
        left[0] -= not path.exists()
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(site, "_put", full)
    with pytest.raises(UserError, match="No space left"):
        write_page(home, folder)
    now = files(folder)
    assert {name: now[name] for name in before if name != "page.json"} == {
        name: data for name, data in before.items() if name != "page.json"
    }
    monkeypatch.undo()
    page = write_page(home, folder)
    assert any(row["label"] == "more" for row in board(page)["sections"][0]["rows"])


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    home = workspace(tmp_path / "w", pair())
    for place in (home, tmp_path / "file"):
        if place != home:
            place.write_text("mine")
        with pytest.raises(UserError, match="-o"):
            write_page(home, place)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (home / "index.html").exists()


def test_a_foreign_page_is_left_alone_though_it_has_a_list_of_the_same_name(tmp_path):
    home, folder = workspace(tmp_path / "w", pair()), tmp_path / "site"
    folder.mkdir()
    theirs = {"page.json": "{}", "index.html": "<!DOCTYPE html><title>mine</title>"}
    for name, text in theirs.items():
        (folder / name).write_text(text)
    with pytest.raises(UserError, match="holds no page"):
        write_page(home, folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == theirs


def test_a_foreign_list_of_files_removes_nothing_else(tmp_path):
    home, folder = workspace(tmp_path / "w", pair()), tmp_path / "page"
    write_page(home, folder)
    (tmp_path / "mine.js").write_text("mine")
    (folder / "details" / "mine").write_text("mine")
    names = ["../mine.js", str(tmp_path / "mine.js"), "index.html", "details/../../mine.js", "details/.mine", 7]
    (folder / "page.json").write_text(json.dumps({"files": names, "before": names}))
    write_page(workspace(home, [record("more")]), folder)
    assert (tmp_path / "mine.js").exists() and (folder / "index.html").exists()
    (folder / "page.json").write_text("[")
    write_page(workspace(home, [record("evenmore")]), folder)


def test_no_records_is_a_mistake_and_makes_no_folder(tmp_path):
    with pytest.raises(UserError, match="no records"):
        write_page(tmp_path, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_maps_stand_with_their_run(tmp_path):
    home = workspace(tmp_path / "w", pair())
    run = record("singer").run.id
    png = b"\x89PNG..."
    page = write_page(home, tmp_path / "page", pictures={run: [Picture("Patch norms", "words", png)]})
    singer = next(row for row in board(page)["sections"][0]["rows"] if row["label"] == "singer")
    shown = {one["id"]: one["pictures"] for one in detail(page, singer)["runs"]}
    (picture,) = shown.pop(run)
    assert (page.parent / picture["file"]).read_bytes() == png
    assert not any(shown.values())


# ---- what is carried


def test_the_libraries_are_as_their_list_says_with_their_licences():
    listed = json.loads((PACKAGE / "vendor" / "versions.json").read_text())
    hashes = {name: digest for one in listed for name, digest in one["sha256"].items()}
    carried = {p.name for p in (PACKAGE / "vendor").iterdir() if p.suffix in (".js", ".css", ".txt")}
    assert carried == hashes.keys()
    for name, digest in hashes.items():
        data = (PACKAGE / "vendor" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest, name
        assert len(data) < 1_000_000
    for one in listed:
        licences = [name for name in one["sha256"] if name.endswith(".LICENSE.txt")]
        assert one["license"] == "MIT" and len(licences) == 1 and one["version"]
        assert "Permission is hereby granted" in (PACKAGE / "vendor" / licences[0]).read_text()


# ---- the command


@pytest.fixture
def call(monkeypatch, capsys):
    def run_cli(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["singer-bench", "page", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run_cli


def test_the_command_makes_the_page_in_the_workspace(tmp_path, call):
    home = workspace(tmp_path / "w", pair())
    code, out, _ = call(home, "--no-maps")
    assert (code, out) == (0, f"{home / 'page' / 'index.html'}\n")
    assert 'data-stamp=""' in (home / "page" / "index.html").read_text()
    code, _, err = call(home, "--no-maps", "-o", home)
    assert code == 2 and "holds no page" in err
    assert call(tmp_path / "nowhere")[0] == 2


def test_watching_makes_it_anew_for_each_change_until_all_has_ended(tmp_path, call, monkeypatch):
    home = workspace(tmp_path / "w", pair())
    steps = [lambda: None, lambda: None, lambda: workspace(home, [record("more")]), lambda: None]

    class Look:
        @property
        def ended(self) -> bool:
            steps.pop(0)()
            return not steps

    monkeypatch.setattr("harness.monitoring.status.status", lambda workspace: Look())
    monkeypatch.setattr(cli_page.time, "sleep", lambda seconds: None)
    code, out, err = call(home, "--no-maps", "--watch")
    assert (code, err) == (0, "")
    assert out.splitlines() == [str(home / "page" / "index.html")] * 2
    text = (home / "page" / "index.html").read_text()
    stamp = re.search(r'data-stamp="(\w+)"', text)
    assert stamp is not None and (home / "page" / "stamp.js").read_text() == f'bench.newest("{stamp[1]}");\n'
    shutil.rmtree(home / "records")
    steps[:] = [lambda: None]
    code, _, err = call(home, "--no-maps", "--watch")
    assert code == 2 and "no records" in err


def test_the_benchmark_ends_with_its_ratio():
    program = Path(__file__).parents[1] / "benchmarks" / "page.py"
    command = [sys.executable, str(program), "--quick", "--no-browser"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"ratio: \d+\.\d\d \(goal <= 1\.00\)", done.stdout.splitlines()[-1])

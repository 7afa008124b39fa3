"""What `publish` packs: all that is needed, nothing of the machine, the same bytes each time, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from publications import (
    PATH,
    contents,
    filled,
    first_record,
    items_of,
    lab,
    named,
    published,
    resealed,
    rezipped,
    with_items,
)
from test_leaderboard import record, seeds

from harness.errors import ConfigError, UserError
from harness.records import read_record, record_text
from leaderboard.page import site
from leaderboard.page.build import write_page
from leaderboard.publishing import manifest, packing, places
from leaderboard.publishing.paths import MARK, marked, record_without_paths, without_paths
from leaderboard.publishing.verifying import verify


@pytest.fixture
def ours(tmp_path) -> Path:
    return lab(tmp_path / "ours", "fitnet", "singer")


def test_records_are_published_byte_for_byte_and_tables_in_every_format(ours, tmp_path):
    done = published(ours, tmp_path / "out")
    there = contents(tmp_path / "out")
    assert {n: d for n, d in there.items() if n.startswith("records/")} == {
        f"records/{p.name}": p.read_bytes() for p in (ours / "records").iterdir()
    }
    assert {n.split(".")[-1] for n in there if n.startswith("tables/")} == {"md", "txt", "tex", "csv", "json"}
    assert set(done.manifest.files) == there.keys() - {"manifest.json"}
    about = done.manifest.summary
    assert (about.records, about.runs) == (11, 7)
    assert (about.methods, about.seeds, about.tasks) == (("fitnet", "singer"), (0, 1, 2), ("cls", "depth"))
    assert done.manifest.program.commit == "c0ffee" and not done.notes


def test_a_publication_is_a_folder_of_results_that_the_table_reads(ours, tmp_path):
    from leaderboard.write import load

    published(ours, tmp_path / "out")
    assert [s.rows for s in load(tmp_path / "out").sections] == [s.rows for s in load(ours).sections]


def test_the_same_results_give_the_same_bytes_whatever_the_time_and_the_order_of_files(ours, tmp_path):
    published(ours, tmp_path / "one.zip")
    again = tmp_path / "elsewhere" / "ours"
    for path in sorted(ours.rglob("*.*"), reverse=True):
        target = again / path.relative_to(ours)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        os.utime(target, (1, 1))
    published(again, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.namelist() == sorted(archive.namelist())
        assert {(i.date_time, i.external_attr, i.create_system) for i in archive.infolist()} == {
            ((1980, 1, 1, 0, 0, 0), 0o100644 << 16, 3)
        }


def test_a_folder_and_a_zip_have_the_same_files_and_the_same_fingerprint(ours, tmp_path):
    one, other = published(ours, tmp_path / "out"), published(ours, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert {n: archive.read(n) for n in archive.namelist()} == contents(tmp_path / "out")
    assert one.fingerprint == other.fingerprint == verify(tmp_path / "out.zip").fingerprint


def test_no_path_of_the_machine_is_in_any_file_and_what_was_taken_out_is_told(tmp_path):
    ours = filled(
        tmp_path / "ours",
        [
            named(record("fitnet", run=""), data={"options": {"labels": f"{PATH}/labels.csv"}}),
            named(record("fitnet", 1)).model_copy(update={"environment": {"note": f"read {PATH}/a.tar twice"}}),
            named(record("clean")),
        ],
    )
    asked = [(record("later").run, f"at step 3: cannot read {PATH}/x")]
    done = published(ours, tmp_path / "out", asked=asked, unknown=[f"no checkpoint '{PATH}/t.pth'"])
    for name, data in contents(tmp_path / "out").items():
        assert b"/home" not in data and b"lovelace" not in data, name
    assert sorted(where for places in done.manifest.removed.values() for where in places) == [
        "data.root",
        "environment.note",
        "notes[0]",
        "run.spec.data.options.labels",
        "runs[0].failure",
    ]
    assert not verify(tmp_path / "out").faults
    plain = yaml.safe_load((tmp_path / "out/experiments/ours.yaml").read_text())
    assert plain == {"name": "ours", "data": {"root": "(path)/imagenet"}, "seeds": [0, 1, 2]}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/data/imagenet", "(path)/imagenet"),
        ("/data/my own/set of images", "(path)/set of images"),
        ("/home/ada", "(path)"),
        ("C:\\Users\\ada", "(path)"),
        ("C:\\Users\\ada\\x.pth", "(path)/x.pth"),
        ("\\\\server\\share\\x", "(path)/x"),
        ("~/data/x", "(path)/x"),
        ("~ada/x", "(path)/x"),
        ("file:///home/ada/x", "(path)/x"),
        ("local-dir:/home/ada/x", "local-dir:(path)/x"),
        ("no file '/home/ada/x.pth' there", "no file '(path)/x.pth' there"),
        ("see ~ada/x, and root:/scratch/ada/y", "see (path)/x, and root:(path)/y"),
        ("first\n/home/ada/x\nlast", "first\n(path)/x\nlast"),
        ("m/s", "m/s"),
        ("outlier_share/block0", "outlier_share/block0"),
        ("https://host/a/b", "https://host/a/b"),
        ("3 / 4, and/or 1/2", "3 / 4, and/or 1/2"),
        ("../shared/data", "../shared/data"),
        ("\\alpha/\\beta", "\\alpha/\\beta"),
        ("train/*/x.jpg", "train/*/x.jpg"),
        ("(path)/x", "(path)/x"),
    ],
)
def test_paths_are_told_from_what_only_looks_like_one(text, left):
    assert without_paths({"a": [text]}) == {"a": [left]}
    assert without_paths(left) == left  # so that what is published can be published again


def test_paths_as_keys_go_too_and_two_of_one_name_stay_two():
    found = without_paths({"/a/b/x": 1, "/c/d/x": 2})
    assert found == {"(path)/x": 1, "(path)/x'": 2} and marked(found) == list(found)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))
def test_taking_paths_out_twice_changes_nothing_more(value):
    once = without_paths(value)
    assert without_paths(once) == once


def test_a_record_without_a_path_is_itself():
    one = named(record("fitnet"))
    assert record_without_paths(one) is one
    changed = record_without_paths(one.model_copy(update={"created": "/home/ada/x"}))
    assert changed.created == f"{MARK}/x" and changed.run == one.run


def test_a_record_of_an_older_schema_is_published_as_one_of_this(ours, tmp_path):
    path = first_record(ours)
    text = record_text(read_record(path))
    plain = {**json.loads(text), "schema_version": 1}
    del plain["sha256"], plain["items"]
    path.write_text(json.dumps(plain))
    published(ours, tmp_path / "out")
    assert (tmp_path / "out/records" / path.name).read_text() == text


def test_numbers_as_keys_of_a_configuration_stay_numbers(tmp_path):
    ours = lab(tmp_path / "ours", "fitnet")
    plain = {"name": "ours", "classes": {0: "cat", 1: PATH}, True: None}
    (ours / "experiments" / "ours.yaml").write_text(yaml.safe_dump(plain))
    done = published(ours, tmp_path / "out")
    text = (tmp_path / "out" / "experiments" / "ours.yaml").read_text()
    assert yaml.safe_load(text) == {"name": "ours", "classes": {0: "cat", 1: "(path)/imagenet"}, True: None}
    assert done.manifest.removed["experiments/ours.yaml"] == ("classes.1",)


def test_names_of_the_user_and_the_machine_are_pointed_at(tmp_path):
    ours = filled(tmp_path / "ours", map(named, seeds("ada's method", 0.5, 0.6)))
    done = published(ours, tmp_path / "out", words=["ada", "node7"])
    assert len(done.notes) == 1 and "'ada'" in done.notes[0] and "records/" in done.notes[0]
    (ours / "experiments" / "ours.yaml").rename(ours / "experiments" / "of node7.yaml")
    done = published(ours, tmp_path / "out", words=["node7"])
    assert done.notes == (
        "the word 'node7' of this machine is in experiments/of node7.yaml; look whether it may be told",
    )


def test_damaged_records_are_named_all_at_once_and_nothing_is_made(ours, tmp_path):
    names = sorted(p.name for p in (ours / "records").iterdir())
    cut, changed, renamed = (ours / "records" / name for name in names[:3])
    cut.write_bytes(cut.read_bytes()[:-200])
    changed.write_text(changed.read_text().replace('"seed": ', '"seed": 1'))
    renamed.rename(renamed.with_name(f"x{renamed.name}"))
    (ours / "experiments" / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError) as error:
        published(ours, tmp_path / "out")
    assert all(name in str(error.value) for name in [*names[:2], f"x{names[2]}", "experiments/bad.yaml"])
    assert not (tmp_path / "out").exists() and sorted(p.name for p in tmp_path.iterdir()) == ["ours"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a: &a {x: 1}\n"
            + "".join(f"{b}: &{b} {{<<: [*{a}, *{a}]}}\n" for a, b in pairwise("abcdefghijklmnopqrstuvwyz")),
            "more than",
        ),
        (
            "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopqrstu")),
            "more than",
        ),
        ("a: &a [*a]", "more than"),
        ("a: " + "[" * 100_000, "experiments/bad.yaml"),
        ("- a", "it is no configuration"),
        ("", "it is no configuration"),
        ("a: 2001-99-99", "month must be in"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
        ("a: '" + "x" * (1 << 20) + "'", "more than 1048576 bytes"),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ],
)
def test_configurations_that_would_do_harm_are_named(ours, tmp_path, text, said):
    (ours / "experiments" / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        published(ours, tmp_path / "out")


def test_a_record_whose_ids_are_not_of_its_content_is_not_published(tmp_path):
    ours = filled(tmp_path / "ours", [record("fitnet")])
    with pytest.raises(ConfigError, match="its run id is not the hash of its specification"):
        published(ours, tmp_path / "out")


def test_nothing_is_not_published(tmp_path):
    (tmp_path / "ours").mkdir()
    with pytest.raises(UserError, match="nothing to publish"):
        published(tmp_path / "ours", tmp_path / "out")


def test_items_that_records_name_come_along_and_no_others(tmp_path):
    ours = with_items(tmp_path / "ours")
    done = published(ours, tmp_path / "out.zip")
    (name,) = [n for n in done.manifest.files if n.startswith("items/")]
    assert "stray" not in name and not verify(tmp_path / "out.zip").faults


@pytest.mark.parametrize(("data", "said"), [(None, "is missing"), (b"other", "is not the one that it names")])
def test_missing_or_changed_items_are_named_by_their_record(tmp_path, data, said):
    ours = with_items(tmp_path / "ours")
    path = items_of(ours)
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"records/.*{said}"):
        published(ours, tmp_path / "out")


def test_a_value_that_its_items_do_not_make_is_not_published(tmp_path):
    ours = with_items(tmp_path / "ours")
    resealed(first_record(ours), lambda plain: plain["values"].update(top1=0.501))
    with pytest.raises(ConfigError, match=r"its values.top1 is 0.501, and items/.* makes 0.5 of it"):
        published(ours, tmp_path / "out")


@pytest.mark.parametrize("of", ["records", "items"])
def test_what_changes_while_it_is_packed_is_not_packed(tmp_path, monkeypatch, of):
    """As where a run goes on in the workspace."""
    ours = with_items(tmp_path / "ours")
    real = packing.check_target

    def later(output: Path) -> None:
        real(output)
        if of == "items":
            items_of(ours).write_bytes(b"measured again")
        else:
            resealed(first_record(ours), lambda plain: plain["values"].update(top1=0.9))

    monkeypatch.setattr(packing, "check_target", later)
    with pytest.raises(UserError, match=rf"{of}/.* was changed while it was packed; the same command"):
        published(ours, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours"]


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_an_older_publication_is_replaced(ours, tmp_path, name):
    first = published(ours, tmp_path / name)
    filled(ours, [named(record("later"))])
    second = published(ours, tmp_path / name)
    assert first.fingerprint != second.fingerprint == verify(tmp_path / name).fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["ours", name])


@pytest.mark.parametrize(("name", "said"), [("out", "changed, its checksum"), ("out.zip", "the manifest 2")])
def test_a_publication_that_was_edited_stays(ours, tmp_path, name, said):
    published(ours, tmp_path / name)
    if name == "out":
        table = tmp_path / "out" / "tables" / "leaderboard.md"
        table.write_text(table.read_text().replace("fitnet", "FITNET"))
    else:
        rezipped(tmp_path / name, lambda files: files.update({"tables/leaderboard.md": b"mine"}))
    before = (tmp_path / name).read_bytes() if name == "out.zip" else contents(tmp_path / name)
    with pytest.raises(UserError, match=rf"is not what was published there \(tables/leaderboard.md: .*{said}"):
        published(ours, tmp_path / name)
    assert before == ((tmp_path / name).read_bytes() if name == "out.zip" else contents(tmp_path / name))


@pytest.mark.parametrize("name", [".", "", "..", "/", "a/..", ".zip", "b/.ZIP"])
def test_what_names_nothing_is_no_place(ours, tmp_path, monkeypatch, name):
    (tmp_path / "here" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=r"is no name for a publication; give it one, such as results or results\.zip"):
        published(ours, Path(name))
    assert list((tmp_path / "here").iterdir()) == [tmp_path / "here" / "a"]


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.7Z", "x.rar"])
def test_a_name_that_promises_another_archive_is_refused(ours, tmp_path, name):
    with pytest.raises(UserError, match=rf"no {Path(name).suffix}; name it x\.zip"):
        published(ours, tmp_path / name)


def test_a_place_below_a_file_is_none(ours, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"b' cannot be made, since '.*file' is a file; name another place"):
        published(ours, tmp_path / "file" / "a" / "b")


def test_no_room_for_the_page_is_said_of_the_place_that_was_named(ours, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site, "write_atomic", full)
    with pytest.raises(UserError) as error:
        published(ours, tmp_path / "out.zip", page=write_page)
    assert str(error.value) == f"cannot write {str(tmp_path / 'out.zip')!r}: No space left on device"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours"]


def test_a_zip_is_one_however_its_ending_is_written(ours, tmp_path):
    published(ours, tmp_path / "OUT.Zip")
    published(ours, tmp_path / "OUT.Zip")
    assert zipfile.is_zipfile(tmp_path / "OUT.Zip") and not verify(tmp_path / "OUT.Zip").faults


@pytest.mark.parametrize("name", ["out[1]", "*", "results ünï 日本", "a.b", "x?.zip"])
def test_unusual_names_of_publications_are_names(ours, tmp_path, name):
    dead = f".{name}.{places._here()}.{2**22 + 1}.00000000.partial"
    (tmp_path / dead).mkdir()
    published(ours, tmp_path / name)
    assert not verify(tmp_path / name).faults
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["ours", name])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a", "A"], "are one where capitals do not count"),
        (["\u00e9", "e\u0301"], "are one where capitals do not count"),
        (["con"], "cannot be the name of a file"),
        (["LPT1.old"], "cannot be the name of a file"),
        (["a?"], "cannot be the name of a file"),
        (["\u00e9" * 124 + "\u20ac"], "cannot be the name of a file"),  # short, and more than 255 bytes
        ([b"\xff\xfe".decode(errors="surrogateescape")], "cannot be the name of a file"),
    ],
)
def test_configurations_whose_names_other_disks_do_not_take_are_named(ours, tmp_path, monkeypatch, names, said):
    real = packing.experiment_files(ours)
    path = next(iter(real.values()))
    monkeypatch.setattr(packing, "experiment_files", lambda _: {f"experiments/{name}.yaml": path for name in names})
    with pytest.raises(UserError, match=rf"experiments/.*{said}.*; rename it in"):
        published(ours, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_anything_else_at_the_place_stays(ours, tmp_path, name):
    place = tmp_path / name
    place.write_text("mine")
    with pytest.raises(UserError, match="exists and is no publication"):
        published(ours, place)
    assert place.read_text() == "mine"


def test_a_publication_with_a_file_of_ones_own_stays(ours, tmp_path):
    published(ours, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes.txt: not in the manifest, so it was added.*name another place"):
        published(ours, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_link_at_the_place_is_not_followed(ours, tmp_path):
    published(ours, tmp_path / "real")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    before = contents(tmp_path / "real")
    with pytest.raises(UserError, match="exists"):
        published(ours, tmp_path / "out")
    assert contents(tmp_path / "real") == before


def test_the_workspace_itself_is_no_place_for_it(ours):
    before = contents(ours)
    with pytest.raises(UserError, match="exists and is no publication"):
        published(ours, ours)
    assert contents(ours) == before


class Stopped(BaseException):
    pass


def calls_of_the_disk(monkeypatch, fail_at: int | None) -> list[str]:
    """Count what changes the disk on the way; raise at one of them."""
    seen: list[str] = []

    def counted(name, real):
        def call(*args, **kwargs):
            seen.append(name)
            if len(seen) - 1 == fail_at:
                raise Stopped
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(places.os, "rename", counted("rename", os.rename))
    monkeypatch.setattr(places.os, "replace", counted("replace", os.replace))
    monkeypatch.setattr(places.os, "fsync", counted("fsync", os.fsync))
    monkeypatch.setattr(manifest, "entry", counted("entry", manifest.entry))
    monkeypatch.setattr(Path, "write_bytes", counted("write", Path.write_bytes))
    return seen


@pytest.mark.parametrize("name", ["out", "out.zip"])
def test_interrupted_at_any_write_the_old_one_is_there_and_nothing_beside_it(ours, tmp_path, name):
    place, probe = tmp_path / name, tmp_path / f"probe{Path(name).suffix}"
    published(ours, place)
    published(ours, probe)
    old = verify(place).fingerprint
    filled(ours, [named(record("later"))])
    with pytest.MonkeyPatch.context() as patch:
        steps = calls_of_the_disk(patch, None)
        published(ours, probe)
    count = len(steps)
    assert count > 30 and steps[-1] in ("rename", "replace")
    for fail_at in [*range(0, count, 7), *range(count - 3, count)]:
        with pytest.MonkeyPatch.context() as patch:
            calls_of_the_disk(patch, fail_at)
            with pytest.raises(Stopped):
                published(ours, place)
        assert verify(place).fingerprint == old
        assert not list(tmp_path.glob(".*"))
    published(ours, place)
    assert verify(place).fingerprint == verify(probe).fingerprint != old


def test_what_a_killed_process_left_is_cleared_and_its_target_brought_back(ours, tmp_path):
    published(ours, tmp_path / "out")
    dead = f".out.{places._here()}.{2**22 + 1}.00000000"  # beyond the largest process id
    (tmp_path / "out").rename(tmp_path / f"{dead}.old")
    (tmp_path / f"{dead}.partial").mkdir()
    (tmp_path / f"{dead}.partial" / "half").write_text("half")
    living = tmp_path / f".out.{places._here()}.1.00000000.partial"
    living.mkdir()

    def page(*_, **__):
        raise Stopped

    with pytest.raises(Stopped):  # before there is a new one
        published(ours, tmp_path / "out", page=page)
    assert not verify(tmp_path / "out").faults
    assert sorted(p.name for p in tmp_path.glob(".*")) == [living.name]


def test_a_page_is_made_of_what_is_published_and_sealed_with_it(ours, tmp_path):
    def page(records: Path, folder: Path, asked, notes, title) -> None:
        folder.mkdir()
        (folder / "index.html").write_text(f"{title}: {len(list((records / 'records').iterdir()))}")

    done = published(ours, tmp_path / "out.zip", page=page)
    found = verify(tmp_path / "out.zip")
    assert "page/index.html" in done.manifest.files and not found.faults
    assert published(ours, tmp_path / "other", page=page).fingerprint == done.fingerprint
    assert (tmp_path / "other" / "page" / "index.html").read_text() == "ours: 11"  # what the experiment is called
    assert "only its checksums were looked at" in found.notes[0]

    def change(files):
        files["page/index.html"] = b"<script>"

    found = verify(rezipped(tmp_path / "out.zip", change))
    assert [fault.split(":")[0] for fault in found.faults] == ["page/index.html"]

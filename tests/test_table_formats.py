"""What a table says is what stands in it, in every format: read back, compiled, and whatever the names are."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import WIDTH, asked, boards, golden, pair, pairs
from test_leaderboard import only, record, seeds, table

from harness.errors import UserError
from leaderboard.board import Leaderboard
from leaderboard.drafts import Asked
from leaderboard.labels import DASH, clean
from leaderboard.markup import _LATEX, MARKUPS, Piece, escape_csv, escape_latex, escape_markdown
from leaderboard.numbers import number_format, three_digits
from leaderboard.render import FORMATS, render
from leaderboard.table import rows_and_columns

HOSTILE = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2",
    "@SUM(A1)",
    " =1",
    "'=1",
    "＝1",
    "a|b\\|c",
    "a\nb\r\n| x | y |",
    "<script>alert(1)</script>",
    "&lt;b&gt;",
    "**bold** _it_ `code` ~~x~~",
    "[link](http://evil) ![i](x) www.evil.com https://evil",
    "\\input{x} \\\\ 50% $x^2$ #1 {a} ~ & _",
    "--- ``x'' \"a ?` ,,",
    "[5pt]",
    "*",
    "# head",
    "1. first",
    "---",
    ":bug:",
    "\u202egnp.exe\x1b[31m\x00",
    "",
    "- a\n- b",
]
NUMBERS = st.just(0.0) | st.floats(1e-12, 1e150) | st.floats(-1e150, -1e-12)
NAMES = st.text(max_size=12) | st.sampled_from(HOSTILE) | st.text("=+-@'|\\*_`[]<>&$#%~^{}:.\" a", max_size=12)


@pytest.mark.parametrize("path", list(golden()), ids=lambda path: path.name)
def test_golden_tables(path: Path) -> None:
    """`python tests/tables.py` writes them anew."""
    assert golden()[path] == path.read_text()


def test_every_golden_file_is_of_a_table() -> None:
    folder = next(iter(golden())).parent
    assert set(folder.iterdir()) == set(golden())


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_the_records_changes_nothing(order: random.Random) -> None:
    records = [
        *pairs(),
        *seeds("x", 0.1, 0.2, 0.7),
        *seeds("x", 0.7, 0.1, 0.2, source="v2"),
        record("y", origin="reported"),
    ]
    records += [record("y", condition="other"), record("z", protocol={"set": "new"})]
    hopes = asked()
    options: dict[str, Any] = {"metrics": "all", "costs": True, "difference": "fitnet", "exclude": "logit_kd"}

    def texts() -> list[str]:
        return [render(rows_and_columns(records, asked=hopes, **options), format, WIDTH) for format in FORMATS]

    before = texts()
    order.shuffle(records)
    order.shuffle(hopes)
    assert texts() == before


def test_costs_are_shown_on_demand() -> None:
    assert "own s" not in render(rows_and_columns(pair()))
    cells = table(pair(), costs=True)
    assert cells["method"][-5:] == ["own s", "teacher s", "memory GB", "extra M", "eval s"]
    assert cells["fitnet"][-5:] == ["10.0", "100 / 2", DASH, "0.0123", DASH]
    line = next(csv.DictReader(io.StringIO(render(rows_and_columns(pair(), costs=True), "csv"))))
    assert {"own_s", "teacher_s", "group_sizes", "peak_memory_gb", "method_parameters", "evaluation_s"} <= set(line)


@pytest.mark.parametrize(
    ("unit", "means", "texts"),
    [
        ("fraction", [0.712, 0.05], ["71.2", "5.0"]),
        ("fraction", [0.00034, 0.00121], ["0.03", "0.12"]),
        ("m", [0.4123, 0.5], ["0.412", "0.500"]),
        ("ratio", [12.34, 512.3, 11.0], ["12.3", "512.3", "11.0"]),
        ("", [123456.7], ["123457"]),
        ("", [1.5e100, -2.0], ["1.50e+100", "-2.00e+00"]),
        ("", [0.0], ["0.0"]),
        ("fraction", [-0.00001, 0.5], ["0.0", "50.0"]),
    ],
)
def test_numbers_have_sensible_digits(unit: str, means: list[float], texts: list[str]) -> None:
    how = number_format(unit, means)
    assert [how.mean(m) for m in means] == texts


def test_a_column_of_small_spreads_gets_one_decimal_more() -> None:
    assert number_format("m", [1.013, 0.941], [0.003, 0.002, 0.006]).mean(0.9413) == "0.941"
    assert number_format("m", [1.013, 0.941], [0.03, 0.002, 0.06]).mean(0.9413) == "0.94"
    assert number_format("m", [1013.0], [0.003]).mean(1013.2) == "1013"  # whole numbers stay whole
    assert number_format("m", [0.9157], decimals=4).mean(0.9157) == "0.9157"
    assert number_format("m", [0.9157, 1e9], decimals=4).mean(1e9) == "1.00e+09"


def test_a_small_spread_never_looks_like_none() -> None:
    how = number_format("fraction", [0.7])
    assert [how.spread(s) for s in (0.0, 0.003, 0.0003, 0.00003)] == ["0.0", "0.3", "0.03", "<0.01"]
    assert [three_digits(v) for v in (0.0, 0.01234, 1.234, 1234.5)] == ["0", "0.0123", "1.23", "1234"]
    assert [three_digits(v) for v in (1e300, 1e-300)] == ["1.00e+300", "1.00e-300"]


@pytest.mark.parametrize("width", [60, 80, 110])
def test_plain_text_is_no_wider_than_asked_and_loses_nothing(width: int) -> None:
    board = boards()["pair"]
    wide, narrow = render(board, "plain", None), render(board, "plain", width)
    assert max(map(len, narrow.split("\n"))) <= width < max(map(len, wide.split("\n")))
    assert set(narrow.split()) >= {word for word in wide.split() if not word.startswith("--")}


def test_costs_begin_a_table_of_their_own_where_the_line_is_too_short_for_all() -> None:
    text = render(boards()["pair"], "plain", 85)
    first, second = re.findall(r"^method.*$", text, re.MULTILINE)
    assert first.endswith("rank") and "GB" not in first and "GB" in second and "seeds" not in second


def test_digits_stand_above_digits_in_plain_text() -> None:
    lines = render(rows_and_columns(pair()), "plain").split("\n")
    of = {
        line.split()[0]: line
        for line in lines
        if line.split()[:1] and line.split()[0] in ("fitnet", "singer", "teacher")
    }
    assert (
        len(
            {
                line.index(digits)
                for line, digits in ((of["fitnet"], "71.0"), (of["singer"], "74.0"), (of["teacher"], "80.0"))
            }
        )
        == 1
    )
    assert len({of[name].index("±") for name in ("fitnet", "singer")}) == 1


# ---- whatever is in a name comes out as that text


def named(name: str, **options: Any) -> Leaderboard:
    """A board with this name wherever a record or a workspace can bring one in."""
    there: dict[str, Any] = {"task": name, "metrics": {name: ("=1", "up"), "b": ("", "up")}, "teacher": name}
    one, other = record(name, **there, student=name), record("b", **there, student=name)
    failed = Asked(record("failed", **there, student=name).run, name)
    return rows_and_columns([one, other], problems=[f"{name}: cut short"], notes=[name], asked=[failed], **options)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_inert_in_csv(name: str) -> None:
    header, *lines = list(csv.reader(io.StringIO(render(named(name), "csv"))))
    assert {len(line) for line in lines} == {len(header)}
    for cell in [*header, *(cell for line in lines for cell in line)]:
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "＝")) and (cell == "" or cell.isprintable())


def markdown_tokens(text: str) -> list[Any]:
    markdown_it = pytest.importorskip("markdown_it", reason="needs markdown-it-py, which comes with rich")
    return markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def markdown_cells(text: str) -> list[str]:
    tokens = markdown_tokens(text)
    cells = [tokens[i + 1] for i, token in enumerate(tokens) if token.type in ("td_open", "th_open")]
    return ["".join(child.content for child in cell.children) for cell in cells]


@pytest.mark.parametrize("by_pair", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_its_own_text_in_markdown(name: str, by_pair: bool) -> None:
    text = render(named(name, by_pair=by_pair, difference="b"), "markdown")
    shown, tokens = markdown_cells(text), markdown_tokens(text)
    assert clean(name) in shown
    assert len(shown) == (5 + by_pair) * len(shown[: shown.index("avg. rank") + 1])  # rows of equal length
    kinds = {child.type for token in tokens for child in token.children or ()}
    marks = {"strong_open", "strong_close", "em_open", "em_close"}
    assert kinds <= {"text", "text_special", "softbreak", *marks}  # no html, link, code
    assert {token.tag for token in tokens if token.type.endswith("_open")} <= set(
        ["h3", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p"]
    )
    assert not any(raw in text for raw in ("<", "www.", "://"))  # GitHub would make links of the latter


def read_latex(text: str) -> str:
    """What LaTeX would print of an escaped text. Fails for a command or a sign that the escape does not make."""
    signs, read, i = {**{tex: sign for sign, tex in _LATEX.items()}, "{}": ""}, "", 0
    while i < len(text):
        sign = next((tex for tex in sorted(signs, key=len, reverse=True) if text.startswith(tex, i)), None)
        if sign is None:
            assert text[i] not in "\\{}$&#^_~%", text[i:]
            assert text[i : i + 2] not in ("--", "``", "''", ",,", "?`", "!`"), text[i:]
        read += text[i] if sign is None else signs[sign]
        i += 1 if sign is None else len(sign)
    return read


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_inert_in_latex(name: str) -> None:
    assert read_latex(escape_latex(name)) == clean(name)
    lines = render(named(name), "latex").split("\n")
    table = lines[lines.index(r"\toprule") : lines.index(r"\bottomrule")]
    assert [line.count(" & ") for line in table if line[:1] != "\\"] == [3] * 5  # two lines of heads, three rows


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_stays_on_its_line_in_plain_text(name: str) -> None:
    text = render(rows_and_columns([record(name, task=name)]), "plain")
    assert text.replace("\n", "").isprintable()
    assert sum(line.startswith(f"{clean(name)} ") for line in text.split("\n")) == 1


def test_a_latex_table_is_fitted_to_the_line() -> None:
    text = render(boards()["paper"], "latex")
    assert r"\providecommand{\fitted}" in text and text.count("\\fitted{%\n\\begin{tabular}") == 1
    assert "\\end{tabular}}\n" in text and text.index(r"\caption") < text.index(r"\smallskip") < text.index(
        r"\fitted{%"
    )


def test_a_row_of_differences_counts_no_seeds_in_csv() -> None:
    lines = list(csv.DictReader(io.StringIO(render(boards()["pair"], "csv"))))
    assert [line["seeds"] for line in lines if line["kind"] == "difference"] == [""]
    assert all(line["seeds"] != "" for line in lines if line["kind"] != "difference")


@given(NAMES)
def test_escaped_names_are_one_printable_line_and_can_be_read_back(name: str) -> None:
    for escape in (clean, escape_markdown, escape_latex, escape_csv):
        assert escape(name) and "\n" not in escape(name) and "\x1b" not in escape(name)
    assert read_latex(escape_latex(name)) == clean(name)
    safe = escape_csv(name)
    assert not safe.startswith(("=", "+", "-", "@"))
    quoted = safe.startswith("'") and safe.lstrip("'").startswith(tuple("=+-@＝＋－＠"))
    assert safe[quoted:] == clean(name)


GRID = st.lists(
    st.tuples(NAMES, st.lists(NUMBERS, min_size=1, max_size=3), st.lists(NUMBERS, max_size=2)),
    min_size=1,
    max_size=4,
    unique_by=lambda row: clean(row[0]),
)


@settings(max_examples=200, deadline=None)
@given(NAMES)
def test_a_note_of_any_text_is_one_item_of_a_list_in_markdown(name: str) -> None:
    board = rows_and_columns([record("a")], notes=[name])
    tokens = markdown_tokens(render(board, "markdown"))
    items = [tokens[i + 2] for i, token in enumerate(tokens) if token.type == "list_item_open"]
    assert items[-1].type == "inline"
    assert "".join(child.content for child in items[-1].children) == clean(name)


@settings(max_examples=60, deadline=None)
@given(GRID)
def test_what_was_written_can_be_read_back(grid: list[tuple[str, list[float], list[float]]]) -> None:
    records = [
        one
        for name, first, second in grid
        for task, values in (("cls", first), ("depth", second))
        for one in seeds(name, *values, task=task)
    ]
    board = rows_and_columns(records)
    section = only(board)
    labels = [row.label for row in section.rows]
    (read,) = json.loads(render(board, "json"))["sections"]
    assert [row["label"] for row in read["rows"]] == labels
    for row, cells in zip(read["rows"], section.cells, strict=True):
        assert [(c["mean"], c["spread"], c["n"]) if c else None for c in row["cells"]] == [
            (c.mean, c.spread, c.n) if c else None for c in cells
        ]
    lines = list(csv.DictReader(io.StringIO(render(board, "csv"))))
    for line, label, cells in zip(lines, labels, section.cells, strict=True):
        assert line["label"] == escape_csv(label)
        for column, cell in zip(section.columns, cells, strict=True):
            found = [line[f"{column.title} top1 (fraction) {part}"] for part in ("mean", "std", "n")]
            assert found == (
                [repr(cell.mean), repr(cell.spread) if cell.spread is not None else "", str(cell.n)]
                if cell
                else ["", "", "0"]
            )
    wide = 2 + len(section.columns) + (len(labels) > 1)
    shown = markdown_cells(render(board, "markdown"))
    assert shown[wide::wide] == labels
    text = render(board, "latex").split("\n")
    body = text[text.index(r"\midrule") + 1 : text.index(r"\bottomrule")]
    assert [read_latex(line.split(" & ")[0].strip()) for line in body] == [
        " ".join(label.split(" ")) for label in labels
    ]


# ---- LaTeX by a real TeX


@pytest.mark.parametrize(
    ("mean", "shown"),
    [
        ("72.0", r"\num{72.0}"),
        ("-0.5", r"\num{-0.5}"),
        ("+0.5", r"$+$\num{0.5}"),
        ("<0.01", r"\num{<0.01}"),
        ("-1.50e-07", r"\num{-1.50}$\times10^{-7}$"),
        ("1.50e+100", r"\num{1.50}$\times10^{100}$"),
        ("[70.59]", "{[}70.59{]}"),
        ("failed", "failed"),
        (DASH, "--"),
    ],
)
def test_numbers_in_latex_are_siunitxs_and_look_the_same_without_it(mean: str, shown: str) -> None:
    assert MARKUPS["latex"].cells([Piece(mean)]) == [shown]
    marked = MARKUPS["latex"].cells([Piece("72.0", "best", "1.4", "(2 of 3)"), Piece("71.0", "second")])
    assert marked == [r"\firstbest{72.0} $\pm$ \num{1.4} (2 of 3)", r"\secondbest{71.0}"]


def test_a_row_of_latex_begins_with_no_argument_of_the_line_before() -> None:
    assert [escape_latex(name) for name in ("[5pt]", "*")] == ["{[}5pt{]}", "{*}"]


def compiled(tmp_path: Path, body: str, packages: str) -> subprocess.CompletedProcess[bytes]:
    latex = shutil.which("pdflatex") or shutil.which("xelatex") or shutil.which("lualatex")
    if latex is None:
        pytest.skip("no LaTeX on this machine")
    finder = shutil.which("kpsewhich")
    for package in packages.split(","):
        if finder and subprocess.run([finder, f"{package}.sty"], capture_output=True).returncode:
            pytest.skip(f"no {package}.sty on this machine")
    page = f"\\documentclass{{article}}\\usepackage{{{packages}}}\\begin{{document}}\n{body}\\end{{document}}\n"
    (tmp_path / "page.tex").write_text(page)
    command = [latex, "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)


@pytest.mark.parametrize("packages", ["booktabs", "booktabs,siunitx"])
def test_the_latex_of_tables_and_of_hostile_names_compiles(tmp_path: Path, packages: str) -> None:
    tables = [render(board, "latex") for board in boards().values()]
    ascii_names = [name for name in HOSTILE if name.isascii()] + [
        "\u202egnp.exe\x1b[31m\x00"
    ]  # others need another TeX
    huge = rows_and_columns([*seeds("huge", 1e100, 2e100), *seeds("tiny", 1e-30, -2e-30)])
    tables += [render(huge, "latex"), *(render(named(name, difference="b"), "latex") for name in ascii_names)]
    body = "\n\\clearpage\n".join(tables)
    done = compiled(tmp_path, body, packages)
    assert done.returncode == 0, done.stdout[-3000:].decode(errors="replace")


def test_with_graphicx_no_table_is_wider_than_the_line(tmp_path: Path) -> None:
    body = render(boards()["paper"], "latex")
    done = compiled(tmp_path, body, "booktabs,graphicx")
    assert done.returncode == 0 and b"Overfull" not in done.stdout
    assert b"Overfull" in compiled(tmp_path, body, "booktabs").stdout  # which is what it is there for


def test_a_board_without_records_says_so() -> None:
    for name in ("markdown", "plain", "latex"):
        assert "no records" in render(rows_and_columns([]), name)
    assert json.loads(render(rows_and_columns([]), "json"))["sections"] == []


def test_an_unknown_format_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'markdown'"):
        render(rows_and_columns([record("a")]), "markdwn")

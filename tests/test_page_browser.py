"""The page in a real browser: sorted, filtered, linked, by keyboard, for everybody, and inert whatever records hold."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, reason_not_available
from tables import asked, pair, pairs, paper
from test_leaderboard import record, seeds
from test_page import HOSTILE, halves, hostile, log, workspace

from harness.errors import UserError
from leaderboard.board import Leaderboard
from leaderboard.labels import clean
from leaderboard.markup import escape_csv, escape_latex
from leaderboard.page.build import write_page
from leaderboard.page.content import Picture
from leaderboard.published import reported_too
from leaderboard.render import render
from leaderboard.table import rows_and_columns

METRES = {"gain": ("m", "up"), "other": ("m", "up")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    reason = reason_not_available()
    if reason:
        pytest.skip(reason)
    made = Browser()
    yield made
    made.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """Two pairs of models, curves and maps of one run."""
    folder = tmp_path_factory.mktemp("page")
    home = workspace(folder / "results", pairs())
    run = record("singer").run.id
    log(home, run, [{"step": step, "loss": 1 / step, "kd": 2.0} for step in range(1, 50)])
    return write_page(home, folder / "page", asked=asked(), pictures={run: [Picture("Patch norms", "words", _png())]})


def _png() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(stream, "PNG")
    return stream.getvalue()


def names(browser: Browser) -> list[str]:
    return browser.run("return [...document.querySelectorAll('#board tbody th')].map(cell => cell.innerText.trim())")


def heads(browser: Browser) -> list[str]:
    return browser.run(
        "return [...document.querySelectorAll('#board thead th .dt-column-title')].map(c => c.textContent.trim())"
    )


def click(browser: Browser, selector: str) -> None:
    """As a user clicks: the element must be where it can be."""
    from selenium.webdriver.common.by import By

    element = browser.driver.find_element(By.CSS_SELECTOR, selector)
    browser.run("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", element)
    element.click()
    browser.settle()


def type_into(browser: Browser, selector: str, text: str) -> None:
    browser.run(
        "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change'));",
        selector,
        text,
    )
    browser.settle()


def sort_by(browser: Browser, column: str) -> str | None:
    place = heads(browser).index(column) + 1
    click(browser, f"#board thead th:nth-child({place})")
    return browser.run(f"return document.querySelector('#board thead th:nth-child({place})').getAttribute('aria-sort')")


def opened(browser: Browser) -> str:
    """The text behind a cell, once it is there."""
    said = "return document.getElementById('details-body').innerText"
    browser.until(lambda: browser.run(said) not in ("", "Reading …"))
    browser.settle()
    return browser.run("return document.getElementById('details').innerText")


def inside(urls: list[str]) -> list[str]:
    return [url for url in urls if not url.startswith(("file://", "data:", "blob:"))]


def test_it_opens_without_a_complaint_and_asks_for_nothing_outside(browser, page):
    browser.show(page)
    for selector in ("#board tbody td", "#close", "[data-download=csv]", "#costs", "#all-columns"):
        if selector == "#all-columns":
            browser.run("document.getElementById('chooser').open = true")
        click(browser, selector)
    assert browser.complaints() == []
    requests = browser.requests()
    assert any(url.endswith(".js") and "/details/" in url for url in requests)
    assert inside(requests) == []


def test_a_heading_sorts_best_first_and_rows_without_a_number_stay_last(browser, page):
    browser.show(page)
    assert names(browser)[0] == "teacher"
    assert sort_by(browser, "depth rmse (m) ↓") == "ascending"
    assert names(browser)[:3] == ["logit_kd", "fitnet", "singer"]
    without = {"crd", "teacher", "vitkd", "untrained"}
    assert set(names(browser)[3:]) == without
    assert sort_by(browser, "depth rmse (m) ↓") == "descending"
    assert names(browser)[:3] == ["singer", "fitnet", "logit_kd"]
    assert set(names(browser)[3:]) == without
    assert sort_by(browser, "cls top1 (%) ↑") == "descending"
    assert names(browser)[:3] == ["teacher", "singer", "logit_kd"]


def test_finding_and_hiding_rows_is_told(browser, page):
    browser.show(page)
    type_into(browser, "#find", "KD logit")
    assert names(browser) == ["logit_kd"]
    assert browser.run("return document.getElementById('count').textContent") == "1 of 7 rows"
    type_into(browser, "#find", "")
    click(browser, "#bounds")
    assert not {"teacher", "untrained"} & set(names(browser)) and "singer" in names(browser)
    type_into(browser, "#find", "nothing like it")
    assert names(browser) == []
    assert browser.complaints() == []


def test_tasks_and_metrics_are_chosen(browser, page):
    browser.show(page)
    assert [head for head in heads(browser) if head.startswith(("cls", "depth"))] == [
        "cls top1 (%) ↑",
        "depth rmse (m) ↓",
    ]
    browser.run("document.getElementById('chooser').open = true")
    click(browser, "#columns fieldset:nth-of-type(2) legend input")
    assert "depth delta1 (%) ↑" in heads(browser) and "cls top5 (%) ↑" not in heads(browser)
    click(browser, "#columns fieldset:nth-of-type(2) legend input")
    assert not [head for head in heads(browser) if head.startswith("depth")]
    click(browser, "#all-columns")
    assert {"cls top5 (%) ↑", "depth delta1 (%) ↑"} <= set(heads(browser))
    click(browser, "#costs")
    assert "training h" in heads(browser)
    assert "memory GB" not in heads(browser)  # nobody's is known
    lines = browser.run("return [...document.querySelectorAll('#legend li')].map(one => one.textContent)")
    assert lines[-2].startswith("training (h): hours of a student's own training")


def test_another_pair_is_another_table(browser, page):
    browser.show(page)
    first = names(browser)
    value = browser.run("return document.getElementById('pair').options[1].value")
    type_into(browser, "#pair", value)
    assert names(browser) != first and "logit_kd" not in names(browser)
    assert f"pair={value}" in browser.driver.current_url


def test_a_link_shows_the_same_view_again(browser, page):
    browser.show(page)
    sort_by(browser, "cls top1 (%) ↑")
    click(browser, "#bounds")
    click(browser, "#costs")
    type_into(browser, "#find", "i")
    browser.run("document.querySelectorAll('#board tbody td')[3].click()")
    opened(browser)
    before = names(browser), heads(browser), browser.driver.current_url
    title = browser.run("return document.getElementById('details-title').textContent")
    browser.show(page, before[2].partition("#")[2])
    opened(browser)
    assert (names(browser), heads(browser), browser.driver.current_url) == before
    assert browser.run("return document.getElementById('details-title').textContent") == title
    click(browser, "#close")
    assert "row=" not in browser.driver.current_url


@pytest.mark.parametrize(
    "hash", ["pair=gone&column=x&sort=nothing&row=nobody&cell=no", "%E0%A4%A&&&=", "metrics=all&row="]
)
def test_a_link_to_what_is_not_there_shows_what_is(browser, page, hash):
    browser.show(page, hash)
    assert "singer" in names(browser)
    assert browser.complaints() == []


def test_a_link_says_what_it_names_in_vain(browser, page):
    said = "return document.getElementById('lost').textContent"
    browser.show(page)
    assert browser.run(said) == ""
    browser.show(page, "row=renamed&cell=old+top9&column=cls+top1&column=old+top1&sort=old+top1&quality=cls+top1")
    assert browser.run(said) == "This link names what is not on this page: the column old top1; the row renamed."
    assert heads(browser)[-1] == "cls top1 (%) ↑"
    assert browser.driver.current_url.endswith("&column=cls+top1&quality=cls+top1")
    click(browser, "#costs")
    assert browser.run(said) == ""
    browser.show(page, "pair=gone")
    assert browser.run(said) == "This link names what is not on this page: the teacher and student."


def test_a_link_holds_no_columns_and_the_axes_of_the_chart(browser, page):
    browser.show(page)
    browser.run("document.getElementById('chooser').open = true")
    for number in (1, 2):
        click(browser, f"#columns fieldset:nth-of-type({number}) legend input")
        click(browser, f"#columns fieldset:nth-of-type({number}) legend input")
    assert heads(browser)[-1] == "avg. rank" and browser.driver.current_url.endswith("&metrics=none")
    assert browser.run("return document.getElementById('scatter').innerText") == "No column is shown."
    browser.show(page, "metrics=none")
    assert heads(browser)[-1] == "avg. rank"
    browser.show(page, "metrics=all")
    type_into(browser, "#scatter-quality", "depth rmse")
    type_into(browser, "#scatter-cost", "method_parameters")
    link = browser.driver.current_url.partition("#")[2]
    browser.show(page, link)
    browser.until(lambda: browser.run("return !!document.querySelector('#scatter canvas')"))
    chart = "const c = Chart.getChart(document.querySelector('#scatter canvas')).options.scales;"
    assert browser.run(chart + "return [c.x.title.text, c.y.title.text]") == [
        "extra parameters (M)",
        "depth rmse (m) ↓",
    ]


def test_a_link_of_yesterday_shows_the_same_pair_where_another_is_the_first_now(browser, tmp_path):
    home = workspace(tmp_path / "w", [record("a", student="z"), record("b", student="z")])
    browser.show(write_page(home, tmp_path / "page"))
    click(browser, "#costs")
    link = browser.driver.current_url.partition("#")[2]
    page = write_page(workspace(home, [record("c", student="a")]), tmp_path / "page")
    browser.show(page)
    assert names(browser) == ["c"]
    browser.show(page, link)
    assert names(browser) == ["a", "b"]


def test_numbers_stand_in_line_whatever_is_behind_them(browser, tmp_path):
    records = [*seeds("a", 0.5, 0.6), record("b"), *seeds("c", 0.1, 0.12), record("c", 2, task="more")]
    browser.show(write_page(workspace(tmp_path / "w", records), tmp_path / "page"))
    place = heads(browser).index("cls top1 (%) ↑")
    ends = browser.run(
        "return [...document.querySelectorAll('#board tbody tr')].map(row => {"
        "const range = document.createRange(), cell = row.cells[arguments[0]];"
        "const mean = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT).nextNode();"
        "range.setStart(mean, 0); range.setEnd(mean, mean.data.trimEnd().length);"
        "return [row.cells[0].innerText, cell.innerText.trim(), range.getBoundingClientRect().right]; })",
        place,
    )
    said = {name: " ".join(text.split()) for name, text, _ in ends}
    assert (said["a"], said["b"], said["c"]) == ("55.0 best ± 7.1", "50.0 second best", "11.0 ± 1.4 (2 of 3)")
    rights = [right for *_, right in ends]
    assert max(rights) - min(rights) < 2


def test_the_skip_link_keeps_the_view_in_the_address(browser, page):
    browser.show(page, "costs=1")
    browser.run("document.querySelector('.skip').click()")
    assert browser.driver.current_url.endswith("&costs=1")
    assert browser.run("return document.activeElement.id") == "table"


def test_a_browser_that_refuses_to_change_the_address_costs_the_link_alone(browser, page):
    browser.show(page)
    browser.run("window.calls = 0; history.replaceState = () => { calls += 1; throw new DOMException('often'); }")
    type_into(browser, "#find", "singer")
    assert names(browser) == ["singer"] and browser.run("return calls") > 0
    browser.show(page)
    browser.run(
        "window.calls = 0; const real = history.replaceState.bind(history);"
        "history.replaceState = (...all) => { calls += 1; real(...all); }"
    )
    type_into(browser, "#find", "singer")
    assert browser.run("return calls") == 1  # typing and drawing again both ask for it


def test_everything_is_within_reach_of_the_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    browser.show(page)
    what = "const e = document.activeElement; return [e.tagName, e.id, e.className, e.innerText.trim().split('\\n')[0]]"
    seen = []
    for _ in range(40):
        browser.press(Keys.TAB)
        seen.append(browser.run(what))
        if seen[-1][0] in ("TD", "TH"):
            break
    ids = [one[1] for one in seen]
    assert ids[1:4] == ["pair", "find", "bounds"] and "link" in ids and "table" in ids
    assert seen[-1][3] == "teacher"
    browser.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    value = browser.run(what)[3]
    assert value.startswith("72.0")
    browser.press(Keys.ENTER)
    assert "cls top1: 72.0 ± 1.0 %" in opened(browser)
    assert browser.run("return document.getElementById('details').contains(document.activeElement)")
    browser.press(Keys.ESCAPE)
    assert browser.run("return document.getElementById('details').open") is False
    assert browser.run(what)[3] == value
    browser.press(Keys.END, Keys.HOME, Keys.ARROW_UP, Keys.ARROW_UP)
    assert browser.run(what)[3] == "teacher"


def test_a_heading_is_sorted_by_the_keyboard(browser, page):
    from selenium.webdriver.common.keys import Keys

    browser.show(page)
    browser.run("document.querySelector('#board thead th:nth-child(4) [role=button]').focus()")
    browser.press(Keys.ENTER)
    assert browser.run("return document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
    assert "sort=cls+top1" in browser.driver.current_url


def test_behind_a_number_are_its_runs_and_all_that_decided_it(browser, page):
    browser.show(page, "row=singer&cell=cls+top1")
    text = opened(browser)
    for part in (
        "cls top1: 74.0 ± 1.0 %",
        "\t74\t",
        "\t73\t",
        "\t75\t",
        "Protocol",
        "Configuration",
        "Environment",
        "Maps",
    ):
        assert part in text
    assert record("singer").run.id in text
    assert browser.run("return document.querySelector('#details-body figure img').naturalWidth") == 40
    points = "return Chart.getChart(document.querySelector('#details-body canvas')).data.datasets[0].data.length"
    assert browser.run(points) == 49
    terms = browser.run("return [...document.querySelectorAll('#curve-term option')].map(one => one.value)")
    assert terms == ["loss", "kd"]
    browser.show(page, "row=vitkd")
    assert "Seed 0 failed at step 7: loss kd is nan." in opened(browser)


def test_charts_show_what_the_table_shows(browser, page):
    browser.show(page, "metrics=all")
    labels = "return Chart.getChart(document.querySelector('#scatter canvas')).data.datasets[0].data.map(p => p.label)"
    assert browser.run(labels) == ["fitnet"]
    browser.show(page, "metrics=all&find=logit")
    assert browser.run("return document.getElementById('scatter').innerText").startswith("No student")


def test_what_is_behind_a_number_is_of_its_own_evaluation(browser, tmp_path):
    one = record("a").model_copy(update={"environment": {"host": "first"}, "created": "2026-01-02T00:00:00+00:00"})
    other = record("a", 0, 0.4, task="other", run=one.run.id)
    other = other.model_copy(update={"environment": {"host": "second"}, "created": "2026-01-01T00:00:00+00:00"})
    page = write_page(workspace(tmp_path / "w", [one, other]), tmp_path / "page")
    for task, host, day in (("cls", "first", "2026-01-02"), ("other", "second", "2026-01-01")):
        browser.show(page, f"row=a&cell={task}+top1")
        assert day in opened(browser)
        pre = "return [...document.querySelectorAll('#details-body pre')].at(-1).textContent"
        assert json.loads(browser.run(pre)) == {"host": host}


def test_the_edge_of_what_is_open_does_not_close_it_and_its_charts_go_with_it(browser, page):
    from selenium.webdriver import ActionChains

    browser.show(page, "row=singer&cell=cls+top1")
    opened(browser)
    charts = "return Object.keys(Chart.instances).length"
    assert browser.run(charts) == 2
    place = browser.run("const b = document.getElementById('details').getBoundingClientRect(); return [b.left, b.top]")
    for left, still in ((5, True), (-15, False)):
        where = ActionChains(browser.driver)
        where.w3c_actions.pointer_action.move_to_location(int(place[0] + left), int(place[1] + 80))
        where.click().perform()
        browser.settle()
        assert browser.run("return document.getElementById('details').open") is still
    assert browser.run(charts) == 1


def test_reported_rows_are_shown_apart_and_open_what_is_theirs(browser, tmp_path):
    page = write_page(workspace(tmp_path / "w", paper()), tmp_path / "page")
    browser.show(page)
    place = browser.run("return bench.data.sections.find(one => one.rows.some(row => row.reported)).key")
    browser.show(page, f"pair={place}")
    assert names(browser).count("singer") == names(browser).count("singer reported") == 1
    top1 = heads(browser).index("imagenet-1k top1 (%) ↑") + 1
    cell = f"#board tbody tr.reported:nth-child({names(browser).index('singer reported') + 1}) td:nth-child({top1})"
    text = browser.run("return document.querySelector(arguments[0]).innerText", cell)
    assert re.fullmatch(r"\[\d\d\.\d\]", text.strip())
    click(browser, cell)
    said = opened(browser)
    assert said.startswith("singer (reported)") and "Reported by SiNGER, ICLR 2026, arXiv 2509.20986" in said
    assert "Protocol" not in said and "Runs" not in said
    link = browser.driver.current_url.partition("#")[2]
    browser.show(page, link)
    assert opened(browser) == said
    browser.show(page, f"pair={place}&row=singer")
    assert opened(browser).startswith("singer\n") and "Reported" not in opened(browser)
    browser.show(page, f"pair={place}")
    assert not any("reported" in row["label"] for row in browser.run("return bench.board.rows().map(line => line.row)"))
    click(browser, "#reported")
    assert not any("reported" in name for name in names(browser))
    assert browser.driver.current_url.endswith("reported=0")
    points = "return Chart.getChart(document.querySelector('#radar canvas'))?.data.datasets.map(one => one.label) ?? []"
    assert not any("reported" in label for label in browser.run(points))


def latex_rows(text: str) -> dict[str, list[str]]:
    """Label -> the other cells of its row, in an order of their own."""
    table = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
    rows = [line.removesuffix(r"\\").split(" & ") for line in table.strip().splitlines() if " & " in line]
    return {label.strip(): sorted(cell.strip() for cell in cells) for label, *cells in rows}


def test_cells_are_those_of_the_table_to_the_letter(browser, tmp_path):
    odd = [
        *seeds("a", -0.5, -0.25, -0.75, metrics=METRES, task="odd"),
        *seeds("b", 2e8, 3e8, metrics=METRES, task="odd"),
        record("b", 5, metrics=METRES, task="more"),
    ]
    negative = [*seeds("a", -1.5, -1.25, task="x", metrics=METRES), *seeds("b", -2.5, 3.0, task="x", metrics=METRES)]
    for number, (records, told) in enumerate(
        ((pairs(), asked()), (odd, ()), (negative, ()), (halves(), ()), (paper(), ()))
    ):
        page = write_page(workspace(tmp_path / f"w{number}", records), tmp_path / f"page{number}", asked=told)
        board = reported_if_any(rows_and_columns(records, metrics="all", asked=told))
        for section in board.sections:
            alone = dataclasses.replace(board, sections=(section,))
            place = board.sections.index(section)
            browser.show(page)
            type_into(browser, "#pair", browser.run("return bench.data.sections[arguments[0]].key", place))
            browser.run("document.getElementById('all-columns').click()")
            browser.settle()
            made = browser.run("return bench.downloads.latex()")
            assert latex_rows(made) == latex_rows(render(alone, "latex")) != {}
            assert r"\begin{minipage}" in made


def reported_if_any(board: Leaderboard) -> Leaderboard:
    try:
        return dataclasses.replace(board, sections=tuple(reported_too(board.sections)))
    except UserError:
        return board


def downloaded(browser: Browser, format: str, suffix: str) -> str:
    for old in browser.downloads.iterdir():
        old.unlink()
    click(browser, f"[data-download={format}]")
    path = browser.downloads / f"results.{suffix}"
    browser.until(path.exists)
    return path.read_text(encoding="utf-8")


def test_what_is_downloaded_is_what_is_shown(browser, page):
    browser.show(page, "bounds=0&sort=cls+top1&direction=desc&costs=1")
    shown = names(browser)
    rows = list(csv.DictReader(io.StringIO(downloaded(browser, "csv", "csv"))))
    assert [row["label"] for row in rows] == shown
    assert float(rows[0]["cls top1 (fraction) mean"]) == pytest.approx(0.74)
    assert (rows[0]["seeds"], rows[0]["kind"], rows[0]["origin"]) == ("3", "student", "measured")
    assert next(row for row in rows if row["label"] == "fitnet")["method_parameters"] == "12345"
    crd = next(row for row in rows if row["label"] == "crd")
    assert (crd["depth rmse (m) mean"], crd["missing"]) == ("", "depth rmse: not run")
    plain = json.loads(downloaded(browser, "json", "json"))
    assert [row["label"] for row in plain["rows"]] == shown
    assert plain["columns"][1] | {"protocol": ""} == {
        "title": "depth",
        "metric": "rmse",
        "unit": "m",
        "direction": "down",
        "protocol": "",
    }
    tex = downloaded(browser, "latex", "tex")
    assert r"singer & 3 &" in tex and r"\firstbest{74.0} $\pm$ \num{1.0}" in tex and r"logit\_kd" in tex
    assert len(latex_rows(tex)) == len(shown)


@pytest.mark.parametrize("dark", [False, True])
def test_nobody_is_shut_out(browser, page, dark):
    browser.show(page, "metrics=all&costs=1", dark=dark)
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
    browser.settle()
    assert browser.violations() == []
    browser.show(page, "row=singer&cell=cls+top1", dark=dark)
    opened(browser)
    assert browser.violations() == []


def test_dark_is_dark(browser, page):
    colours = []
    for dark in (False, True):
        browser.show(page, dark=dark)
        colours.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 27)"]


def test_the_rank_diagram_is_light_on_the_dark_page(browser, tmp_path):
    from PIL import Image

    page = write_page(workspace(tmp_path / "w", pair()), tmp_path / "page")
    browser.show(page, dark=True)
    browser.run("document.querySelector('#diagram img').scrollIntoView({block: 'center'})")
    browser.until(lambda: browser.run("return document.querySelector('#diagram img').naturalWidth > 0"))
    browser.settle()
    box = browser.run(
        "const b = document.querySelector('#diagram img').getBoundingClientRect();"
        "return [b.left + 2, b.top + 2, b.right - 2, b.bottom - 2]"
    )
    shown = np.asarray(Image.open(browser.picture(tmp_path / "dark.png")).convert("L").crop(box)).astype(int)
    assert abs(shown[0, 0] - 23) < 6 and shown.min() > 10 and shown.max() > 200


def test_long_names_without_blanks_fit_on_a_phone(browser, tmp_path):
    long = "a_method_with_a_name_that_is_longer_than_a_phone_is_wide_by_far"
    tasks = ("cls", "more")
    records = [r for task in tasks for r in (*seeds(long, 0.5, 0.6, task=task), *seeds("b", 0.7, 0.8, task=task))]
    page = write_page(workspace(tmp_path / "w", records), tmp_path / "page")
    browser.show(page, size=(390, 844))
    wide = "return ['html', 'dialog'].every(one => (d => d.scrollWidth <= d.clientWidth)(document.querySelector(one)))"
    assert long in browser.run("return document.querySelector('#diagram figcaption').innerText")
    assert browser.run(wide)
    click(browser, "#board tbody th")
    opened(browser)
    assert browser.run(wide)


def test_on_a_phone_only_the_table_scrolls_sideways(browser, page):
    browser.show(page, "metrics=all&costs=1", size=(390, 844))
    wide = "return [document.documentElement.scrollWidth <= innerWidth, document.getElementById('table').scrollWidth]"
    fits, table = browser.run(wide)
    assert fits and table > 390
    browser.run("document.getElementById('table').scrollLeft = 400")
    browser.settle()
    left = "return document.querySelector('#board tbody th').getBoundingClientRect().left"
    assert 0 <= browser.run(left) < 40  # the name stays
    click(browser, "#board tbody th")
    opened(browser)
    assert browser.run("return document.getElementById('details').getBoundingClientRect().right <= innerWidth")


def test_what_records_hold_is_text_everywhere(browser, tmp_path):
    home = workspace(tmp_path / "<b>w", hostile())
    page = write_page(home, tmp_path / "page", notes=[HOSTILE])
    browser.show(page, "metrics=all")
    seen = []
    for key in browser.run("return [...document.getElementById('pair').options].map(one => one.value)"):
        type_into(browser, "#pair", key)
        for index, name in enumerate(names(browser), start=1):
            seen.append(name)
            click(browser, f"#board tbody tr:nth-child({index}) td:last-child")
            opened(browser)
            assert (
                browser.run("return document.querySelectorAll('main img, dialog img, script:not([src])').length") <= 2
            )
            click(browser, "#close")
    assert browser.run("return [bench.hit, ({}).polluted, document.title]") == [None, None, "<b>w – singer-bench"]
    assert any(clean(HOSTILE) in name for name in seen) and "=1+1" in seen
    assert browser.run("return [...document.querySelectorAll('img')].every(one => one.closest('#diagram'))")
    assert browser.complaints() == [] and inside(browser.requests()) == []
    plain = browser.run("return bench.data.sections.findIndex(one => one.rows[0].label === '=1+1')")
    type_into(browser, "#pair", browser.run("return bench.data.sections[arguments[0]].key", plain))
    rows = list(csv.reader(io.StringIO(downloaded(browser, "csv", "csv"))))
    assert ["'=1+1" in row for row in rows].count(True) == 1
    assert not any(cell.startswith(("=", "+", "@")) for row in rows for cell in row)


TEXTS = [
    HOSTILE,
    "=1",
    "'=1",
    "''@x",
    "-x",
    "＝1",
    "a,b",
    'a"b',
    "50% of x_1",
    "a--b",
    "?`x",
    "``x''",
    "[a] *",
    "\\foo{}$#^~&|<>",
    "±↑↓→−–",
    "ümlaut",
]


def test_names_are_escaped_as_in_the_other_tables(browser, page):
    browser.show(page)
    texts = [clean(text) for text in TEXTS]
    tex = browser.run("return arguments[0].map(bench.downloads.latexName)", texts)
    assert tex == [escape_latex(text) for text in texts]
    made = browser.run("return arguments[0].map(bench.downloads.csvName).join(',')", texts)
    assert next(csv.reader(io.StringIO(made))) == [escape_csv(text) for text in texts]


def many() -> list[Any]:
    """300 methods on 15 tasks with two metrics each."""
    found = []
    for task in range(15):
        for method in range(300):
            value = ((method * 7919 + task) % 1000) / 1000
            found.append(record(f"method_{method}", value=value, second=1 - value, task=f"task{task}"))
    return found


def test_a_table_of_hundreds_of_methods_is_sorted_and_filtered(browser, tmp_path):
    home = tmp_path / "w"
    from leaderboard.page import build

    records = many()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "read_records", lambda folder: (records, []))
        patch.setattr(build, "differences", lambda records, items: ({}, ()))  # they take longer than the rest
        page = write_page(home, tmp_path / "page")
    browser.show(page, "metrics=all")
    assert len(names(browser)) == 300 and len(heads(browser)) >= 32
    assert sort_by(browser, "task3 top1 (%) ↑") == "descending"
    best = max((one for one in records if one.task == "task3"), key=lambda one: one.values["top1"])
    assert names(browser)[0] == best.run.label
    sort_by(browser, "method")
    assert names(browser)[:3] == ["method_0", "method_1", "method_2"]
    type_into(browser, "#find", "method_29")
    assert len(names(browser)) == 11
    assert browser.complaints() == []


def test_it_reloads_itself_only_where_that_is_asked_for(browser, tmp_path):
    home = workspace(tmp_path / "w", seeds("fitnet", 0.5, 0.6))
    page = write_page(home, tmp_path / "page", live=True)
    quick = "const slow = setInterval; setInterval = (what, wait) => slow(what, Math.min(wait, 30));"
    added = browser.cdp("Page.addScriptToEvaluateOnNewDocument", source=quick)
    try:
        browser.show(page)
        workspace(home, seeds("singer", 0.7, 0.8))
        write_page(home, tmp_path / "page", live=True)
        browser.run("return new Promise(done => setTimeout(done, 300))")
        assert names(browser) == ["fitnet"]
        click(browser, "#live")
        browser.until(lambda: names(browser) == ["singer", "fitnet"])
        assert browser.run("return document.getElementById('live').checked")
    finally:
        browser.cdp("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])
    browser.show(write_page(home, tmp_path / "still"))
    assert browser.run("return document.getElementById('live-label').hidden")

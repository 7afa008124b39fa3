"""What the user is told: mistakes with the nearest right value, progress that can be read; and seeds from names."""

from __future__ import annotations

import io
import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import progress
from harness.errors import ConfigError, no_file, unknown
from harness.progress import Bar, Console
from harness.seeds import content_hash, derive

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


# ---- errors


def test_an_unknown_name_is_told_with_the_nearest_and_all_others():
    assert unknown("method", "singr", ["singer", "fitnet"]) == (
        "no method 'singr'; did you mean 'singer'? Known: fitnet, singer"
    )
    assert unknown("method", "qqq", ["singer"]) == "no method 'qqq'. Known: singer"
    assert unknown("method", "x", []) == "no method 'x'. Known: (none)"


@pytest.mark.parametrize("given", ["SiNGER", "SINGER", "Singer", "singer ", "sinqer"])
def test_capitals_and_slips_do_not_hide_the_nearest_name(given):
    assert "did you mean 'singer'?" in unknown("method", given, ["singer", "sp", "rkd"])


def test_a_dash_is_as_good_as_an_underline():
    assert "did you mean 'logit_kd'?" in unknown("method", "LOGIT-KD", ["logit_kd", "dkd"])


@given(
    st.lists(st.text(string.ascii_lowercase, min_size=3, max_size=9), min_size=1, max_size=60, unique=True), st.data()
)
def test_a_name_that_exists_but_for_its_last_letter_is_found(names, data):
    name = data.draw(st.sampled_from(names))
    said = unknown("setting", f"{name}!", names)
    assert f"did you mean {name!r}?" in said


def test_a_long_list_is_cut_to_what_is_near():
    names = [f"vit_{i}" for i in range(500)]
    said = unknown("model", "vit_12x", names)
    assert len(said) < 250
    assert "500 are known, the nearest: " in said and "vit_12," in said


def test_a_file_that_does_not_exist_is_told_with_its_neighbours(tmp_path):
    (tmp_path / "one.yaml").touch()
    (tmp_path / "one.txt").touch()
    said = no_file("configuration file", tmp_path / "on.yaml", "*.yaml")
    assert said == (f"no configuration file 'on.yaml'; did you mean 'one.yaml'? Known: one.yaml (in {tmp_path})")
    missing = tmp_path / "nowhere" / "on.yaml"
    assert no_file("file", missing) == f"no file {str(missing)!r}: its folder does not exist"


def test_one_mistake_is_one_line_and_several_are_a_list():
    assert str(ConfigError(["a is wrong"], "my.yaml")) == "my.yaml: a is wrong"
    assert str(ConfigError(["a is wrong", "b too"], "my.yaml")) == "my.yaml: 2 mistakes:\n  - a is wrong\n  - b too"
    assert str(ConfigError(["a is wrong"])) == "a is wrong"


# ---- progress


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def screen(monkeypatch):
    """Standard error, and a clock that goes on by one second at each look."""

    def made(terminal: bool = False, second_s: float = 1.0) -> Screen:
        screen, now_s = Screen(terminal), iter(range(10**6))
        monkeypatch.setattr("sys.stderr", screen)
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(now_s) * second_s)
        return screen

    return made


def test_plain_progress_is_a_line_now_and_then_and_one_at_the_end(screen):
    said = screen()
    with Console().bar("training", 100) as bar:
        for step in range(1, 101):
            bar.update(step)
    lines = said.getvalue().splitlines()
    assert len(lines) == math.ceil(100 / Bar.EVERY_S)
    assert lines[0] == "training: 15/100, 1/s, 1.4 min left"
    assert lines[-1] == "training: 100/100, 1/s, 0.0 min left"


def test_progress_that_was_resumed_is_measured_from_where_it_began(screen):
    said = screen(second_s=20.0)
    with Console().bar("training", 1000, start=900) as bar:
        bar.update(910)
    assert said.getvalue() == "training: 910/1000, 0.5/s, 3.0 min left\n"


def test_a_quiet_console_says_nothing(screen):
    for terminal in (False, True):
        said, console = screen(terminal), Console(quiet=True)
        console.say("hello")
        with console.bar("training", 1) as bar:
            bar.update(1)
        assert said.getvalue() == ""


def test_a_terminal_shows_a_bar_with_the_label_as_it_is(monkeypatch):
    said = Screen(terminal=True)
    monkeypatch.setattr("sys.stderr", said)
    monkeypatch.setenv("COLUMNS", "120")
    with Console().bar("training [red]x", 10) as bar:
        bar.update(10)
    assert "training [red]x" in said.getvalue()
    assert "10/10" in said.getvalue()


def test_a_bar_of_nothing_is_not_shown(monkeypatch):
    said = Screen(terminal=True)
    monkeypatch.setattr("sys.stderr", said)
    with Console().bar("evaluating", 0):
        pass
    assert said.getvalue() == ""


# ---- seeds


def test_seeds_are_the_same_on_every_machine():
    assert derive("order", 0, 1) == 6948624756589500242
    assert content_hash({"a": 1, "b": [1.5, "x", None]}) == "177dcbfefb15d603"


@given(plain, plain)
def test_different_parts_give_different_seeds_and_hashes(one, other):
    if repr(one) == repr(other):
        assert derive(one) == derive(other)
    elif one != other:
        assert derive(one) != derive(other)
        assert content_hash(one) != content_hash(other)


@given(st.lists(plain, max_size=4))
def test_a_seed_fits_every_generator(parts):
    assert 0 <= derive(*parts) < 2**63


@given(st.dictionaries(st.text(max_size=5), plain, max_size=5))
def test_the_order_of_keys_does_not_count(value):
    backwards = dict(reversed(value.items()))
    assert content_hash(backwards) == content_hash(value)
    assert derive(backwards) == derive(value)


def test_the_order_of_parts_counts():
    assert derive("a", "b") != derive("b", "a") != derive("ab")


def test_what_is_no_number_cannot_be_hashed():
    with pytest.raises(ValueError, match="JSON"):
        content_hash({"a": float("nan")})

"""Drawn settings lie in their spaces, are the same every time, and are as many for every method."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.catalogue import Catalogue, catalogue
from harness.config import parse
from harness.errors import ConfigError, UserError
from harness.search import SAMPLERS, spaces
from harness.search import settings as drawn
from harness.specs import MethodSpec

METHOD = '''
from harness.api import Method


class Mine(Method):
    """Nothing; its hyperparameters are what matters."""

    name = "mine"
    cite = "x"
    search = {"weight": ("log", 0.1, 10.0), "kind": ("choice", "a", "b")}
    presets = {"mine_published": {"weight": 2.0}}

    def __init__(self, student, teacher, *, weight: float = 1.0, share: float = 0.5, count: int = 4,
                 kind: str = "a", layers: tuple[int, ...] | None = None) -> None:
        super().__init__(student, teacher)

    def losses(self, student, teacher, batch):
        return {}


class Plain(Method):
    """Has nothing to search."""

    name = "plain_one"
    cite = "x"

    def losses(self, student, teacher, batch):
        return {}
'''
INT = st.tuples(st.integers(-50, 50), st.integers(1, 60)).map(lambda p: ["int", p[0], p[0] + p[1]])
REAL = st.tuples(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300)).filter(lambda p: p[0] < p[1])
SPACES = {
    "weight": st.tuples(st.floats(1e-300, 1e300), st.floats(1e-300, 1e300))
    .filter(lambda p: p[0] < p[1])
    .map(lambda p: ["log", *p]),
    "share": REAL.map(lambda p: ["uniform", *p]),
    "count": INT,
    "kind": st.lists(st.text(max_size=3), min_size=2, max_size=5, unique=True).map(lambda c: ["choice", *c]),
    "layers": st.just(["choice", None, [1, 2], [3]]),
}
SEARCH = st.fixed_dictionaries({}, optional=SPACES).map(lambda s: {"weight": None, "kind": None, **s})


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Catalogue:
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_text(METHOD)
    return catalogue([path])


def mine(**entry) -> MethodSpec:
    return MethodSpec(method="mine", **entry)


@settings(max_examples=60, deadline=None)
@given(search=SEARCH, count=st.integers(1, 20), seed=st.integers(0, 9), sampler=st.sampled_from(SAMPLERS))
def test_every_setting_lies_in_its_spaces_comes_again_and_stands_first_among_more(known, search, count, seed, sampler):
    method = mine(search=search)
    found = drawn(known, method, count, seed, sampler)
    assert found[0] == {} and 1 <= len(found) <= count
    assert found == drawn(known, method, count, seed, sampler)
    assert found == drawn(known, method, 2 * count, seed, sampler)[: len(found)]
    asked = {name: space for name, space in search.items() if space is not None}
    resolved = [known.resolve("method", "mine", one) for one in found]  # each is valid
    assert len({json.dumps(one) for one in resolved}) == len(found)
    for one in found[1:]:
        assert one.keys() == asked.keys()
        for name, value in one.items():
            kind, *ends = asked[name]
            assert value in ends if kind == "choice" else ends[0] <= value <= ends[1], name
            assert kind != "int" or isinstance(value, int)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trials_depend_on_the_seed_and_the_method_and_cover_the_space(known, sampler):
    method = mine(search={"kind": None, "share": ["uniform", 0.0, 1.0]})
    one, other = (drawn(known, method, 65, seed, sampler) for seed in (0, 1))
    assert one != other
    shares = [setting["share"] for setting in one[1:]]
    logs = [setting["weight"] for setting in one[1:]]
    assert 0.35 < sum(shares) / 64 < 0.65 and 20 < sum(weight < 1 for weight in logs) < 44
    preset = MethodSpec(method="mine_published", search={"weight": ["log", 0.1, 10.0], "kind": None})
    same_space = drawn(known, mine(search={"kind": None}), 5, 0, sampler)
    assert drawn(known, preset, 5, 0, sampler)[1:] != same_space[1:]


def test_a_sobol_sequence_fills_every_bin_equally(known):
    """2^k points of it have exactly one in each of 2^k intervals; the row's own setting is not one of them."""
    method = mine(search={"weight": None, "kind": None, "share": ["uniform", 0.0, 1.0]})
    found = [setting["share"] for setting in drawn(known, method, 17, 3, "sobol")[1:]]
    assert sorted(int(share * 16) for share in found) == list(range(16))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_small_space_is_tried_whole_and_nothing_twice(known, sampler):
    method = mine(search={"weight": None, "count": ["int", 1, 3]})
    found = drawn(known, method, 50, 0, sampler)
    assert len(found) == 1 + 6  # count=4, the default, lies outside
    assert {(s["count"], s["kind"]) for s in found[1:]} == {(c, k) for c in (1, 2, 3) for k in "ab"}
    many = mine(search={"weight": None, "kind": None, "count": ["int", 1, 60]})
    assert len(drawn(known, many, 60, 0, sampler)) == 60  # more points are drawn until all are there
    inside = mine(search={"weight": None, "count": ["int", 3, 4]})
    assert len(drawn(known, inside, 50, 0, sampler)) == 4


def test_a_method_without_a_space_has_one_setting(known):
    assert drawn(known, MethodSpec(method="plain_one"), 16) == [{}]
    assert drawn(known, mine(hyperparameters={"weight": 3.0}, search={"weight": None, "kind": None}), 16) == [
        {"weight": 3.0}
    ]


def test_what_makes_a_row_is_searched_only_where_its_entry_says_so(known):
    assert spaces(known, mine()).keys() == {"kind", "weight"}
    assert spaces(known, mine(hyperparameters={"weight": 3.0})).keys() == {"kind"}
    assert spaces(known, MethodSpec(method="mine_published")).keys() == {"kind"}
    narrowed = mine(hyperparameters={"weight": 3.0}, search={"weight": ["log", 1.0, 5.0], "kind": None})
    assert spaces(known, narrowed).keys() == {"weight"}
    first, *others = drawn(known, narrowed, 9)
    assert first == {"weight": 3.0} and all(1 <= one["weight"] <= 5 for one in others)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"wieght": ["log", 1, 2]}, "search.wieght: mine has no hyperparameter 'wieght'; did you mean 'weight'?"),
        ({"wieght": None}, "did you mean 'weight'?"),
        ({"weight": ["lg", 1, 2]}, "search.weight: no kind of space 'lg'; did you mean 'log'?"),
        ({"weight": [0.1, 10]}, "a space is written as [log, 0.1, 10]"),
        ({"weight": 3}, "not 3"),
        ({"weight": ["log", 1]}, "log needs two numbers, low and high, not [1]"),
        ({"weight": ["log", 0, 1]}, "log must go up from more than 0, low before high, not 0, 1"),
        ({"share": ["uniform", 2, 1]}, "uniform must go up, low before high, not 2, 1"),
        ({"share": ["uniform", 1, 1]}, "must go up"),
        ({"count": ["int", 1.5, 3]}, "an end of int is 1.5 (float); it must be int"),
        ({"count": ["log", 1, 8]}, "count of mine is 1.0 (float); it must be int; log has other values"),
        ({"kind": ["choice", "a", 3]}, "kind of mine is 3 (int); it must be str"),
        ({"kind": ["choice", "a"]}, "a choice needs two values or more"),
        ({"share": ["choice", 1, 1.0]}, "all of them different"),
    ],
)
def test_a_mistake_in_a_space_is_said_in_words(known, search, said):
    with pytest.raises(ConfigError) as caught:
        spaces(known, mine(search=search))
    assert said in str(caught.value)


def test_all_mistakes_come_at_once_and_say_where_they_stand(tmp_path):
    raw = {
        "teacher": {},
        "student": {},
        "training": {"steps": 1},
        "methods": ["none", {"method": "fitnet", "search": {"wait": ["log", 1, 2], "weight": ["log", 2, 1]}}],
    }
    with pytest.raises(ConfigError) as caught:
        parse(raw)
    first, second = caught.value.mistakes
    assert first.startswith("methods.1.search.wait: fitnet has no hyperparameter 'wait'")
    assert second.startswith("methods.1.search.weight: log must go up")


@pytest.mark.parametrize(("count", "sampler", "said"), [(0, "sobol", "trials is 0"), (2, "sobl", "no sampler 'sobl'")])
def test_no_trials_and_no_such_sampler_are_errors(known, count, sampler, said):
    with pytest.raises(UserError, match=said):
        drawn(known, mine(), count, 0, sampler)


@pytest.mark.parametrize("name", sorted(catalogue().methods))
def test_every_declared_space_gives_settings_that_its_method_takes(name):
    known = catalogue()
    for setting in drawn(known, MethodSpec(method=name), 9):
        known.resolve("method", name, setting)

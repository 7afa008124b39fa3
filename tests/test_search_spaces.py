"""What every method of the catalogue declares to be searched; no line of this file is about one of them."""

from __future__ import annotations

import math

import pytest

from harness.catalogue import catalogue
from harness.search import spaces
from harness.specs import MethodSpec

KNOWN = catalogue()
FOUND = {name: spaces(KNOWN, MethodSpec(method=name)) for name in KNOWN.methods}  # presets keep what defines them
OURS = [name for name, entry in KNOWN.methods.items() if entry.module.startswith("baselines.")]


@pytest.mark.parametrize("name", [name for name, found in FOUND.items() if found])
def test_every_space_names_a_hyperparameter_has_a_known_form_and_holds_the_default(name):
    """`spaces` refuses strange names, forms and values."""
    for key, space in FOUND[name].items():
        assert KNOWN.methods[name].hyperparameters[key].default in space, key


@pytest.mark.parametrize("name", FOUND)
def test_layers_are_never_searched(name):
    """A comparison holds them equal."""
    assert not {"layers", "student_layers", "reduction"} & set(FOUND[name])


@pytest.mark.parametrize("name", OURS)
def test_a_baseline_has_at_most_four_spaces_and_the_logarithmic_ones_are_centred_on_the_default(name):
    """To a fifth of their breadth."""
    assert len(FOUND[name]) <= 4
    for key, space in FOUND[name].items():
        if space.kind == "log":
            low, high = map(math.log, space.values)
            off = math.log(KNOWN.methods[name].hyperparameters[key].default) - (low + high) / 2
            assert abs(off) <= 0.2 * (high - low), key


@pytest.mark.parametrize("name", [name for name in OURS if KNOWN.methods[name].preset_of is None])
def test_a_baseline_with_a_weight_a_share_or_a_temperature_says_where_to_look(name):
    has_numbers = any(type(p.default) is float for p in KNOWN.methods[name].hyperparameters.values())
    assert bool(FOUND[name]) is has_numbers

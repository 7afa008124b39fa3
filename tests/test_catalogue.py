"""The catalogue: what it finds, what it refuses, and that values which mean the same hash alike."""

from __future__ import annotations

import json
import string
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import catalogue as module
from harness.catalogue import PACKAGES, catalogue
from harness.errors import ConfigError, UserError
from harness.parsing.annotations import checked, fault_of
from harness.seeds import content_hash

PLUGIN = '''
from typing import Literal

from harness.api import Method


class Mine(Method):
    """First line.

    More of it.
    """

    name = "mine"
    family = "feature"
    cite = "made up"
    presets = {"mine_large": {"weight": 2}}
    search = {"weight": [0.1, 10.0]}

    def __init__(
        self,
        student,
        teacher,
        *,
        weight: float = 1.0,  # eq. 3
        rank: int | None = None,
        layers: tuple[int, ...] = (1, 2),
        kind: Literal["a", "b"] = "a",
        sizes: dict[str, float] = {},
        flag: bool = False,
    ):
        super().__init__(student, teacher)

    def losses(self, student, teacher, batch):
        return {}
'''


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


def mistakes_of(path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        catalogue([path])
    return str(raised.value)


def test_the_projects_own_are_found_with_module_and_without_hash():
    known = catalogue()
    assert known.methods["fitnet"].module == "baselines.fitnet"
    assert known.methods["singer_paper"].preset_of == "singer"
    assert known.sources["scenes"].module == "tasks.datasets.scenes"
    assert {e.source_hash for e in known.methods.values() if e.module.split(".")[0] in PACKAGES} == {None}


def test_everything_that_a_class_says_is_read_from_a_plugin(plugin):
    entry = catalogue([plugin]).methods["mine"]
    assert (entry.kind, entry.family, entry.cite, entry.summary) == ("method", "feature", "made up", "First line.")
    assert entry.doc == "First line.\n\nMore of it."
    assert entry.search == {"weight": [0.1, 10.0]}
    assert (entry.path, entry.qualname, entry.module) == (plugin.resolve(), "Mine", "")
    weight = entry.hyperparameters["weight"]
    assert (weight.annotation, weight.default, weight.comment) == ("float", 1.0, "eq. 3")
    assert entry.hyperparameters["layers"].default == (1, 2)


def test_a_preset_is_an_entry_with_its_own_defaults(plugin):
    known = catalogue([plugin])
    assert known.methods["mine_large"].preset_of == "mine"
    assert known.resolve("method", "mine_large", {}) == {**known.resolve("method", "mine", {}), "weight": 2.0}


def test_reading_runs_nothing_of_the_file(plugin):
    plugin.write_text(PLUGIN + "\nraise SystemExit('it was run')\n")
    assert "mine" in catalogue([plugin]).methods


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("from harness.api import Method", "from harness.api import Method as Base"),
        ("from harness.api import Method", "import harness.api as api"),
        ('name = "mine"', 'name: str = "mine"'),
    ],
)
def test_a_class_is_found_however_its_base_is_imported(plugin, old, new):
    base = {"from harness.api import Method as Base": "Base", "import harness.api as api": "api.Method"}.get(new)
    text = PLUGIN.replace(old, new)
    plugin.write_text(text.replace("Mine(Method)", f"Mine({base})") if base else text)
    assert "mine" in catalogue([plugin]).methods


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("weight: float = 1.0", "weight: float = 1 / 3", "mine.py:24: weight of Mine has the default 1 / 3"),
        ("weight: float = 1.0", "weight=1.0", "mine.py:24: weight of Mine has no annotation"),
        ("weight: float = 1.0", "weight: float", "weight of Mine has no default"),
        ("weight: float = 1.0", "weight: Optional = 1.0", "'Optional'"),
        ("flag: bool = False,", "flag: bool = False,\n        **rest,", "takes **rest"),
        ("        *,\n", "        scale: float = 1.0,\n        *,\n", "scale of Mine must be keyword-only"),
        ('cite = "made up"', "cite = __doc__", "cite of Mine must be a literal"),
        ('cite = "made up"', "cite = 3", "cite of Mine must be a str"),
        ('name = "mine"', 'name = "My Method"', "must be of a-z"),
        ('{"weight": 2}', '{"wieght": 2}', "did you mean 'weight'?"),
        ('{"weight": 2}', "2", "must map a name to hyperparameters"),
        ('{"weight": [0.1, 10.0]}', '{"with": 1}', "did you mean 'weight'?"),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_and_line(plugin, old, new, said):
    assert old in PLUGIN
    assert said in mistakes_of(plugin, PLUGIN.replace(old, new))


def test_all_mistakes_of_a_plugin_are_told_at_once_or_kept_where_not_strict(plugin):
    text = PLUGIN.replace("weight: float = 1.0", "weight=1.0").replace("rank: int | None = None", "rank: int")
    said = mistakes_of(plugin, text)
    assert "weight of Mine" in said and "rank of Mine" in said
    assert len(catalogue([plugin], strict=False).methods["mine"].mistakes) == 2


def test_a_plugin_that_is_missing_names_the_nearest(plugin):
    with pytest.raises(UserError, match=r"did you mean 'mine\.py'"):
        catalogue([plugin.parent / "mien.py"])


def test_a_plugin_with_a_syntax_error_is_refused_with_its_line(plugin):
    assert "mine.py:3 is not valid Python" in mistakes_of(plugin, "# Method\n\ndef f(:\n")


def test_a_plugin_that_defines_nothing_is_refused(plugin):
    assert "defines no method and no task" in mistakes_of(plugin, "class Method:\n    name = 'method'\n")


def test_one_name_twice_is_refused_with_both_files(plugin):
    said = mistakes_of(plugin, PLUGIN.replace('"mine"', '"fitnet"'))
    assert "baselines/fitnet.py:" in said and "mine.py:" in said


def test_a_plugin_twice_or_one_of_the_project_counts_once(plugin):
    known = catalogue([plugin, str(plugin), catalogue().methods["fitnet"].path])
    assert known.of_file(plugin)[0].name == "mine"


def test_a_changed_plugin_is_read_again(plugin):
    assert "mine" in catalogue([plugin]).methods
    plugin.write_text(PLUGIN.replace('"mine"', '"yours_instead"'))
    assert "yours_instead" in catalogue([plugin]).methods


def test_the_hash_of_a_plugin_is_that_of_its_code(plugin):
    def hashed(text):
        plugin.write_text(text)
        return catalogue([plugin]).methods["mine"].source_hash

    original = hashed(PLUGIN)
    assert hashed("# a comment\n" + PLUGIN.replace("  # eq. 3", "").replace("First line.", "Another.")) == original
    assert hashed(PLUGIN.replace("return {}", "return {'kd': 1}")) != original


def distribution(folder, entry_points: str, code: str) -> None:
    """An installed distribution with a package of one module, found over sys.path."""
    (folder / "outside").mkdir()
    (folder / "outside" / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    (folder / "outside" / "methods.py").write_text(code)
    info = folder / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def afresh(monkeypatch):
    """What is installed is looked up anew, now and after the test."""
    module._installed.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    module._installed.cache_clear()


@pytest.mark.parametrize("value", ["outside.methods:Mine", "outside.methods"])
def test_an_entry_point_is_found_without_importing_its_package(tmp_path, afresh, value):
    distribution(tmp_path, f"[singer_bench.methods]\nmine = {value}\n", PLUGIN)
    afresh.syspath_prepend(str(tmp_path))
    entry = catalogue().methods["mine"]
    assert entry.module == "outside.methods"
    assert entry.source_hash is not None
    assert "outside" not in sys.modules


@pytest.mark.parametrize("value", ["outside.nothing:Mine", "outside.methods:Other", "nowhere_at_all:Mine"])
def test_an_entry_point_to_nothing_is_refused(tmp_path, afresh, value):
    distribution(tmp_path, f"[singer_bench.methods]\nmine = {value}\n", PLUGIN)
    afresh.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="entry point 'mine'"):
        catalogue()


# ---- values


def test_every_mistake_in_the_values_is_told_at_once(plugin):
    wrong = {"wieght": 1, "rank": "4", "flag": 1, "kind": "c", "layers": "12", "sizes": {"x": "y"}, "weight": True}
    with pytest.raises(ConfigError) as raised:
        catalogue([plugin]).resolve("method", "mine", wrong)
    told = "\n".join(raised.value.mistakes)
    assert len(raised.value.mistakes) == len(wrong)
    assert "mine has no hyperparameter 'wieght'; did you mean 'weight'?" in told
    assert "rank of mine is '4' (str); it must be int | None" in told
    assert "no kind of mine 'c'" in told and "Known: a, b" in told


def test_a_name_that_does_not_exist_is_told_with_the_nearest():
    with pytest.raises(UserError, match="no method 'fitnett'; did you mean 'fitnet'"):
        catalogue().resolve("method", "fitnett", {})


def test_a_source_and_a_task_have_options():
    with pytest.raises(ConfigError, match="scenes has no option 'sise'; did you mean 'size'"):
        catalogue().resolve("source", "scenes", {"sise": 3})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, object])
def test_a_value_that_json_cannot_hold_is_a_mistake(value):
    with pytest.raises(ValueError, match="finite plain value"):
        checked("x", "Any", value)


def test_text_that_yaml_should_have_read_as_a_number_is_one():
    assert checked("x", "float", "1e-3") == 0.001
    assert checked("x", "float | None", "2E5") == 200000.0
    with pytest.raises(ValueError, match="it must be float"):
        checked("x", "float", "one")


ANNOTATIONS = {
    "float": st.floats(-1e6, 1e6) | st.integers(-1000, 1000),
    "int | None": st.integers() | st.none(),
    "tuple[int, ...]": st.lists(st.integers()) | st.lists(st.integers()).map(tuple),
    "Literal['a', 'b']": st.sampled_from("ab"),
    "dict[str, float]": st.dictionaries(st.text(string.ascii_letters), st.integers(-9, 9)),
    "bool": st.booleans(),
}
KEYS = dict(zip(["weight", "rank", "layers", "kind", "sizes", "flag"], ANNOTATIONS, strict=True))


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "mine.py"
    path.write_text(PLUGIN)
    return catalogue([path])


@given(values=st.fixed_dictionaries({}, optional={key: ANNOTATIONS[annotation] for key, annotation in KEYS.items()}))
def test_resolving_fills_in_all_and_resolving_again_changes_nothing(mine, values):
    resolved = mine.resolve("method", "mine", values)
    assert set(resolved) == set(KEYS)
    assert resolved == json.loads(json.dumps(resolved)) == mine.resolve("method", "mine", resolved)
    defaults = mine.resolve("method", "mine", {})
    assert all(resolved[key] == defaults[key] for key in resolved if key not in values)


@given(st.integers(-(2**50), 2**50))
def test_a_whole_number_and_its_float_hash_alike(number):
    def hashed(value):
        return content_hash(catalogue().resolve("method", "fitnet", {"weight": value}))

    assert hashed(number) == hashed(float(number))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(JSON, st.sampled_from(list(ANNOTATIONS)))
def test_any_value_is_taken_or_told_in_one_sentence(value, annotation):
    try:
        taken = checked("x", annotation, value)
    except ValueError as error:
        assert str(error).startswith(("x is", "no x"))
    else:
        json.dumps(taken, allow_nan=False)


@pytest.mark.parametrize(
    "annotation",
    ["__import__('os')", "list[f()]", "int.__class__", "Tensor", "Literal[f()]", "Literal", "int &  str", "1", "a b"],
)
def test_an_annotation_that_is_no_plain_type_is_refused(annotation):
    assert fault_of(annotation) is not None


@pytest.mark.parametrize(
    "annotation",
    ["typing.Optional[int]", "Sequence[float] | None", "dict[str, list[int]]", "Literal['a', 1, None]", "tuple", "Any"],
)
def test_plain_types_are_understood(annotation):
    assert fault_of(annotation) is None
    with pytest.raises(ValueError, match="finite plain value"):
        checked("x", annotation, object())


def test_a_plugin_that_no_file_can_be_called_is_a_users_error():
    with pytest.raises(UserError, match="cannot be the name of a file"):
        catalogue(["no\x00file.py"])

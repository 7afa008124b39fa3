"""The registries: names to classes, one import for each, plugins in any process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness import registry
from harness.checking.specimen import Size, toy_teacher
from harness.errors import ConfigError, UserError
from harness.plugins import import_file, module_name
from harness.registry import METHODS, SOURCES, TASKS, build_method, load_plugin, method_class, source_class, task_class

ROOT = Path(__file__).parents[1]
PLUGIN = '''
from harness.api import Method


class Mine(Method):
    """A method for tests."""

    name = "{name}"
    cite = "made up"
    presets = {{"{name}_2": {{"weight": 2.0}}}}

    def __init__(self, student, teacher, *, weight: float = 1.0, layers: tuple[int, ...] = ()):
        super().__init__(student, teacher)
        if weight < 0:
            raise ValueError(f"weight is {{weight}}")
        self.weight, self.layers = weight, layers

    def losses(self, student, teacher, batch):
        return {{"kd": student.logits.sum()}}
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plugin file; nothing else is loaded, and what is loaded in the test is forgotten after it."""
    monkeypatch.setattr(registry, "_PLUGINS", [])
    for name in ("mine", "mine_2"):
        METHODS._module_dict.pop(name, None)  # another test's, in this process
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="mine"))
    yield path
    for name in ("mine", "mine_2"):
        METHODS._module_dict.pop(name, None)


@pytest.fixture(scope="module")
def vit():
    return toy_teacher(Size())


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_names_give_classes_and_unknown_names_give_none():
    assert METHODS.get("fitnet").name == "fitnet"
    assert TASKS.get("classification").name == "classification"
    assert SOURCES.get("scenes").name == "scenes"
    assert "fitnet" in METHODS and "nope" not in METHODS
    assert METHODS.get("nope") is None
    assert METHODS.get("json") is None  # not the module of that name


def test_everything_in_the_catalogue_is_registered_and_shown():
    assert set(METHODS.module_dict) >= set(registry.known().methods)
    assert len(TASKS) == len(registry.known().tasks)
    assert "scenes" in repr(SOURCES)


def test_a_preset_is_its_method_with_other_defaults(vit):
    built = METHODS.get("target_norm_l2")(vit, vit, layers=(1, 2))
    assert type(built) is METHODS.get("target_norm")
    assert built.kind == "l2"
    assert METHODS.get("target_norm_l2")(vit, vit, kind="layernorm").kind == "layernorm"
    assert method_class("target_norm_l2") is METHODS.get("target_norm")


def test_mmengine_builds_from_a_configuration(vit):
    assert METHODS.build({"type": "fitnet", "student": vit, "teacher": vit, "weight": 3.0}).weight == 3.0


def test_unknown_names_are_told_with_the_nearest():
    for find, name, near in ((method_class, "fitnt", "fitnet"), (task_class, "artifact", "artifacts")):
        with pytest.raises(UserError, match=f"did you mean '{near}'"):
            find(name)
    with pytest.raises(UserError, match="did you mean 'scenes'"):
        source_class("scene")


def test_an_unknown_name_of_the_module_is_an_attribute_error():
    with pytest.raises(AttributeError, match="MODELS"):
        _ = registry.MODELS


def test_a_plugin_is_loaded_once_and_known_from_then_on(plugin, vit):
    with pytest.raises(UserError, match="no method 'mine'"):
        build_method("mine", vit, vit, {})
    load_plugin(plugin)
    first = METHODS.get("mine")
    load_plugin(str(plugin))
    assert METHODS.get("mine") is first is method_class("mine")
    built = build_method("mine_2", vit, vit, {"layers": [1, 2]})
    assert type(built) is first
    assert (built.weight, built.layers) == (2.0, (1, 2))


def test_a_plugin_may_be_given_at_the_call(plugin, vit):
    assert build_method("mine", vit, vit, {}, plugins=[plugin]).weight == 1.0
    with pytest.raises(UserError, match="no method 'mine'"):
        build_method("mine", vit, vit, {})


def test_hyperparameters_are_checked_before_anything_is_built(plugin, vit):
    with pytest.raises(ConfigError, match="mine has no hyperparameter 'wait'"):
        build_method("mine", vit, vit, {"wait": 1}, plugins=[plugin])


def test_what_a_method_refuses_is_the_users_mistake(plugin, vit):
    with pytest.raises(UserError, match="method 'mine': weight is -1"):
        build_method("mine", vit, vit, {"weight": -1}, plugins=[plugin])


def test_a_plugin_that_fails_while_imported_is_told_with_its_line(plugin):
    plugin.write_text(PLUGIN.format(name="mine") + "import no_such_package\n")
    line = PLUGIN.count("\n") + 1
    with pytest.raises(UserError, match=rf"mine\.py:{line}: ModuleNotFoundError: No module named 'no_such_package'"):
        load_plugin(plugin)


def test_two_plugins_of_one_file_name_are_two_modules(plugin):
    other = plugin.parent / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text(PLUGIN.format(name="another"))
    load_plugin(plugin)
    load_plugin(other)
    assert method_class("mine") is not method_class("another")
    METHODS._module_dict.pop("another", None)


def test_an_object_of_a_plugin_can_be_unpickled_in_another_process(tmp_path):
    path = tmp_path / "with-dash.py"
    path.write_text("class Thing:\n    number = 7\n")
    import pickle

    data = pickle.dumps(import_file(path).Thing())
    assert python(f"import pickle; print(pickle.loads({data!r}).number)") == "7"
    assert import_file(path) is sys.modules[module_name(path)]


def test_importing_the_registry_is_light_and_a_method_imports_no_other():
    lines = python(
        "import sys\n"
        "import harness.registry as registry\n"
        "heavy = ('torch', 'mmengine', 'pydantic', 'numpy')\n"
        "print([m for m in heavy if m in sys.modules])\n"
        "registry.known()\n"
        "print([m for m in heavy if m in sys.modules])\n"
        "from harness.registry import METHODS\n"
        "print([m for m in ('torch',) if m in sys.modules])\n"
        "registry.method_class('fitnet')\n"
        "print(sorted(m for m in sys.modules if m.startswith(('baselines.', 'singer', 'tasks'))))\n"
    ).splitlines()
    assert lines == ["[]", "[]", "[]", "['baselines.fitnet']"]


def test_a_package_of_the_same_name_in_front_is_told(tmp_path):
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "__init__.py").write_text("")
    (tmp_path / "baselines" / "fitnet.py").write_text("class FitNet: pass\n")
    said = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import harness.registry\n"
        "try:\n    harness.registry.method_class('fitnet')\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    assert said.startswith("UserError")
    assert "Python imports baselines.fitnet from" in said

"""Configurations: what is right is read as meant; what is wrong is told at once, with its place and its value."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.config import Experiment, load, merge, parse
from harness.errors import ConfigError, UserError
from harness.runs import bound_runs, student_runs, task_runs
from harness.specs import Training

ROOT = Path(__file__).parents[1]
SHIPPED = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "tasks")  # suites: test_suites.py
GOOD: dict[str, Any] = {
    "teacher": {"width": 48},
    "student": {},
    "training": {"epochs": 1},
    "methods": ["fitnet", {"method": "singer", "hyperparameters": {"rank": 8}}],
}
TRAINING = (
    "batch_size, betas, clip_grad, compile, epochs, lr, min_lr_share, momentum, optimizer, precision, steps, tf32"
)


def good(**changes: Any) -> Experiment:
    return parse({**GOOD, **changes})


def mistakes(text: str = "", **changes: Any) -> list[str]:
    """What is wrong with the good configuration once these settings, YAML in `text`, replace its own."""
    with pytest.raises(ConfigError) as caught:
        parse({**GOOD, **(yaml.safe_load(text) or {}), **changes}, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    return caught.value.mistakes


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes | None = None, name: str = "my.yaml", **changes: Any) -> Path:
        path = tmp_path / name
        data = text if text is not None else yaml.safe_dump({**GOOD, **changes})
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def refusal(path: Path, *set_: str, plugins: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        load(path, set_, plugins)
    return str(caught.value)


# ---- what is wrong


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainning: {}", "top level: no setting 'trainning'; did you mean 'training'?"),
        ("training: {epochs: 1, lrr: 1}", f"training: no setting 'lrr'; did you mean 'lr'? Known: {TRAINING}"),
        (
            "teacher: {fit: {training: {epochs: 1, batch-size: 3}}}",
            "teacher.fit.training: no setting 'batch-size'; did",
        ),
        (
            "teacher: {planted: {layr: 1, layer: 1, size: 2}}",
            "teacher.planted: no setting 'layr'; did you mean 'layer'",
        ),
        ("data: {augment: {flipp: 1}}", "data.augment: no setting 'flipp'; did you mean 'flip'? Known: flip, ratio"),
        ("tasks: [{task: artifacts, data: {root_: x}}]", "tasks.0.data: no setting 'root_'; did you mean 'root'?"),
        ("methods: [fitnet, {method: none, labl: x}]", "methods.1: no setting 'labl'; did you mean 'label'?"),
        ("training: {epochs: many}", "training.epochs: must be a number, not 'many'"),
        ("training: {epochs: -1}", "training.epochs: must be greater than 0, not -1"),
        ("training: {epochs: .nan}", "training.epochs: must be a finite number, not nan"),
        ("training: {epochs: true}", "training.epochs: must be a number, not true"),
        ("training: {epochs: 1, batch_size: 1.5}", "training.batch_size: must be a whole number, not 1.5"),
        ("training: {epochs: 1, compile: 'yes'}", "training.compile: must be true or false, not 'yes'"),
        (
            "training: {epochs: 1, optimizer: adam}",
            "training.optimizer: no value 'adam'; did you mean 'adamw'? Known: ad",
        ),
        ("training: {epochs: 1, momentum: 2}", "training.momentum: must be at most 1, not 2"),
        ("training: {epochs: 1, warmup_epochs: -2}", "training.warmup_epochs: must be at least 0, not -2"),
        ("training: {epochs: 1, betas: [0.9]}", "training.betas.1 is missing: the list is too short"),
        ("training: {epochs: 1, betas: [0.9, 0.9, 0.9]}", "training.betas: must have 2 items, not 3"),
        ("training: {epochs: 1, betas: [0.9, 1.0]}", "training.betas.1: must be less than 1, not 1.0"),
        ("training: {epochs: 1, betas: 0.9}", "training.betas: must be a list, not 0.9"),
        ("training: {}", "training: give either epochs or steps; neither is given"),
        ("training: {epochs: 1, steps: 3}", "training: give either epochs or steps; both are given"),
        ("training:", "training: must be a mapping of settings (key: value), not empty"),
        ("data: scenes", "data: must be a mapping of settings (key: value), not 'scenes'"),
        ("data: {augment: {scale: [1, 0.5]}}", "data.augment: scale must go up from more than 0, such as"),
        ("methods: fitnet", "methods: must be a list, not 'fitnet'"),
        ("methods: []", "methods: must have at least 1 item"),
        ("methods: [1]", "methods.0: must be a mapping of settings (key: value), not 1"),
        ("methods: {fitnet: 1}", "methods: must be a list, not a mapping"),
        ("seeds: 0", "seeds: must be a list, not 0"),
        ("seeds: [0, a]", "seeds.1: must be a whole number, not 'a'"),
        ("seeds: [0, 1, 0]", "seeds: '0' stands there twice; leave one out"),
        ("plugins: mine.py", "plugins: must be a list, not 'mine.py'"),
        ("plugins: [no_such_file.py]", "no plugin file 'no_such_file.py'"),
        ("name: no", "name: must be text, not false; put it in quotes"),
        ("name: 2024-01-01", "name: must be text, not 2024-01-01; put it in quotes"),
        ("name: ../elsewhere", "name: must be able to name a folder, not '../elsewhere'"),
        ("1: 2", "top level: the key 1 must be text; put it in quotes"),
        ("methods: [{method: fitnet, hyperparameters: {1: 2}}]", "methods.0.hyperparameters: the key 1 must be text"),
        ("teacher: {pretrained: true, checkpoint: x}", "teacher: pretrained and checkpoint exclude each other"),
        ("teacher: {pretrained: true, fit: {training: {epochs: 1}}}", "teacher: fit trains a fresh teacher; leave out"),
        ("teacher: {options: {a: .nan}}", "teacher.options: holds more than finite numbers, text, lists and mappings"),
        ("teacher: {options: {a: 2024-01-01}}", "teacher.options: holds more than finite numbers, text, lists and map"),
        (
            "teacher: &t {options: *t}",
            "teacher.options: holds more than finite numbers, text, lists and mappings: Circ",
        ),
        ("methods: [fitnett]", "methods.0: no method 'fitnett'; did you mean 'fitnet'? Known: "),
        ("methods: [SiNGER]", "methods.0: no method 'SiNGER'; did you mean 'singer'?"),
        ("tasks: [clasification]", "tasks.0: no task 'clasification'; did you mean 'classification'?"),
        ("data: {source: scene}", "data: no source 'scene'; did you mean 'scenes'?"),
        ("tasks: [{task: artifacts, data: {source: scene}}]", "tasks.0.data: no source 'scene'; did you mean 'scenes'"),
        ("data: {options: {cout: 3}}", "data: scenes has no option 'cout'; did you mean 'count'?"),
        (
            "teacher: {fit: {method: fitnt, training: {epochs: 1}}}",
            "teacher.fit: no method 'fitnt'; did you mean 'fitne",
        ),
        (
            "methods: [{method: fitnet, hyperparameters: {wieght: 2}}]",
            "methods.0: fitnet has no hyperparameter 'wieght'; did you mean 'weight'?",
        ),
        (
            "methods: [{method: fitnet, hyperparameters: {weight: heavy}}]",
            "methods.0: weight of fitnet is 'heavy' (str); it must be float",
        ),
        (
            "tasks: [{task: classification, options: {stepz: 2}}]",
            "tasks.0: classification has no option 'stepz'; did y",
        ),
        ("methods: [fitnet, fitnet]", "methods: 'fitnet' stands there twice; give each its own label"),
        ("methods: [fitnet, {method: none, label: fitnet}]", "methods: 'fitnet' stands there twice; give each its own"),
        ("tasks: [artifacts, artifacts]", "tasks: 'artifacts' stands there twice; give each its own label"),
        (
            "methods: [{method: none, label: teacher}]",
            "methods: 'teacher' is the name of a bound's row; choose another",
        ),
        (
            "methods: [{method: fitnet, teacher: {planed: 1}}]",
            "methods.0.teacher: no setting 'planed'; did you mean 'planted'?",
        ),
        (
            "methods: [{method: fitnet, teacher: {planted: {layer: x, size: 1}}}]",
            "methods.0.teacher.planted.layer: must be a whole number, not 'x'",
        ),
        (
            "teacher: {model: 'local-dir:nowhere'}",
            "teacher.model: no file 'nowhere/config.json': its folder does not ex",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place_its_value_and_the_nearest_right_one(text, said):
    found = mistakes(text)
    assert any(sentence.startswith(said) for sentence in found), found


def test_every_mistake_is_told_at_once_whether_of_form_or_of_meaning():
    found = mistakes(
        """
        trainning: {}
        training: {epochs: many, lrr: 1}
        methods: [fitnett, {metod: none}, {method: singer, hyperparameters: {rnk: 1, basis: [3]}}, 7]
        tasks: [clasification, {task: artifacts, options: {image: 1}}]
        data: {source: scene, image_size: 0}
        seeds: [1, 1]
        teacher: {checkpoint: /nowhere/teacher.safetensors}
        student: {checkpoint: /nowhere/student.safetensors}
        """
    )
    for said in (
        "training.epochs: must be a number",
        "training: no setting 'lrr'",
        "top level: no setting 'trainning'",
        "methods.0: no method 'fitnett'",
        "methods.1.method is missing",
        "methods.1: no setting 'metod'",
        "methods.2: singer has no hyperparameter 'rnk'",
        "methods.2: basis of singer is [3]",
        "methods.3: must be a mapping",
        "tasks.0: no task 'clasification'",
        "tasks.1: artifacts has no option 'image'",
        "data.image_size: must be greater than 0",
        "seeds: '1' stands there twice",
        "teacher.checkpoint: no file '/nowhere/teacher.safetensors'",
        "student.checkpoint: no file '/nowhere/student.safetensors'",
    ):
        assert sum(sentence.startswith(said) for sentence in found) == 1, (said, found)
    assert len(found) == 15, found


def test_mistakes_are_numbered_in_the_message_and_each_has_its_line():
    with pytest.raises(ConfigError) as caught:
        parse({"methods": ["none"]}, "my.yaml")
    head, *lines = str(caught.value).split("\n")
    assert head == "my.yaml: 3 mistakes:"
    assert lines == ["  - teacher is missing", "  - student is missing", "  - training is missing"]


def test_a_long_value_is_shown_cut_short():
    (found,) = mistakes(training={"epochs": "x" * 10_000})
    assert len(found) < 200


def test_a_checkpoint_that_does_not_exist_is_told_with_its_nearest_neighbour(tmp_path):
    (tmp_path / "vit_tiny.safetensors").touch()
    (found,) = mistakes(teacher={"checkpoint": str(tmp_path / "vit_tny.safetensors")})
    assert "teacher.checkpoint: no file 'vit_tny.safetensors'; did you mean 'vit_tiny.safetensors'?" in found
    rows = [{"method": "fitnet", "teacher": {"checkpoint": str(tmp_path / "vit_tny.safetensors")}}]
    (found,) = mistakes(methods=rows)
    assert found.startswith("methods.0.teacher.checkpoint: no file 'vit_tny.safetensors'; did you mean")


def test_a_row_may_be_called_teacher_where_no_bounds_are_shown():
    assert good(bounds=False, methods=[{"method": "none", "label": "teacher"}]).methods[0].title() == "teacher"


# ---- what is read


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "1.0e-3", "0.001", "10e-4", " 1e-3 "])
def test_a_number_with_an_exponent_is_a_number_however_yaml_reads_it(text):
    assert good(training={"epochs": 1, "lr": yaml.safe_load(text)}).training.lr == 0.001
    hyperparameters = {"weight": yaml.safe_load(text)}
    spec = student_runs(good(methods=[{"method": "fitnet", "hyperparameters": hyperparameters}]))[0].spec
    assert spec["hyperparameters"]["weight"] == 0.001


def test_text_that_only_begins_like_a_number_is_none():
    assert mistakes(training={"epochs": "1e-3x"}) == ["training.epochs: must be a number, not '1e-3x'"]
    assert mistakes(training={"steps": "1e4"}) == ["training.steps: must be a whole number, not '1e4'"]


def test_an_experiment_cannot_be_changed():
    with pytest.raises(ValidationError):
        good().training.lr = 1.0


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_can_be_read_without_its_data(path):
    experiment = load(path)
    assert experiment.name == path.stem
    assert student_runs(experiment) and task_runs(experiment)


def test_there_are_shipped_configurations():
    assert {"demo", "tiny-imagenet", "vit-large-to-tiny", "deit3-small-to-tiny"} <= {p.stem for p in SHIPPED}


# ---- files


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"# nothing but a comment\n", "is empty"),
        (b"- a\n- b\n", "must hold a mapping of settings (key: value), not a list"),
        (b"just text", "must hold a mapping of settings (key: value), not a str"),
        (b"\x93NUMPY\x01\x00\xff\xfe", "is no text in UTF-8"),
        (b"a\x00b", "is not valid YAML"),
        (b"a: [1, 2", "is not valid YAML: line 1, column 9"),
        (b"a: 1\n\tb: 2", "is not valid YAML: line 2, column 1"),
        (b"a: 2024-13-45", "is not valid YAML: month must be in 1..12"),
        (b"a: " + b"[" * 3_000, "is not valid YAML: it is nested too deeply"),
        (b"seeds: [0]\nname: x\nseeds: [1]", "is not valid YAML: line 3, column 1: 'seeds' stands there twice"),
        (b"training: {lr: 1, lr: 2}", "is not valid YAML: line 1, column 19: 'lr' stands there twice"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(file, content, said):
    path = file(content)
    assert f"{path} {said}" in refusal(path)


def test_a_file_that_does_not_exist_is_told_with_its_nearest_neighbour(file, tmp_path):
    file(name="demo.yaml")
    assert "no configuration file 'dmo.yaml'; did you mean 'demo.yaml'?" in refusal(tmp_path / "dmo.yaml")
    assert "its folder does not exist" in refusal(tmp_path / "nowhere" / "demo.yaml")
    assert refusal(tmp_path) == f"cannot read {tmp_path}: Is a directory"


@pytest.mark.parametrize("place", ["file", "--set"])
def test_a_configuration_never_runs_code(file, tmp_path, place):
    trap = tmp_path / "trap"
    code = f'!!python/object/apply:os.system ["touch {trap}"]'
    if place == "file":
        said = refusal(file(f"name: {code}\n"))
        assert "is not valid YAML: line 1, column 7" in said and "never runs code" in said
    else:
        assert "name: must be able to name a folder" in refusal(file(), f"name={code}")
    assert not trap.exists()


def test_anchors_and_merges_of_yaml_are_understood(file):
    text = """
        teacher: &vit {width: 48, depth: 2}
        student: {<<: *vit, width: 24}
        training: {epochs: 1}
        methods: [none]
    """
    experiment = load(file(text))
    assert (experiment.student.width, experiment.student.depth) == (24, 2)


# ---- base


def test_a_file_inherits_key_by_key_over_any_number_of_bases(file):
    file(name="a.yaml", training={"epochs": 1, "lr": 0.5, "betas": [0.1, 0.2]}, seeds=[1, 2, 3])
    file("base: a.yaml\ntraining: {lr: 0.25}\nname: b", name="b.yaml")
    experiment = load(file("base: b.yaml\ntraining: {batch_size: 7}\nseeds: [9]", name="c.yaml"))
    assert experiment.training == Training(epochs=1, lr=0.25, betas=(0.1, 0.2), batch_size=7)
    assert experiment.seeds == (9,)  # a list is replaced, not joined
    assert experiment.name == "b"


def test_a_base_lies_beside_the_file_that_names_it(file, tmp_path):
    (tmp_path / "below").mkdir()
    file(name="a.yaml", seeds=[5])
    (tmp_path / "below" / "b.yaml").write_text("base: ../a.yaml")
    file("base: below/b.yaml", name="c.yaml")
    assert load(tmp_path / "c.yaml").seeds == (5,)


def test_bases_that_lead_back_to_themselves_are_refused(file):
    one, two = file("base: b.yaml", name="a.yaml"), file("base: a.yaml", name="b.yaml")
    assert refusal(one) == f"{one}: base: {one} -> {two} -> {one} leads back to itself"
    alone = file("base: ./self.yaml", name="self.yaml")
    assert "leads back to itself" in refusal(alone)


def test_a_base_that_does_not_exist_is_told_with_the_file_that_names_it(file):
    file(name="tiny.yaml")
    path = file("base: tny.yaml")
    assert refusal(path).startswith(
        f"base of {path}: no configuration file 'tny.yaml'; did you mean 'tiny.yaml'? Known: my.yaml, tiny.yaml"
    )
    assert refusal(file("base: [a.yaml]")) == f"{path}: base must name one file, not ['a.yaml']"


def test_merging_changes_neither_side():
    below, above = {"a": {"b": 1}, "c": [1]}, {"a": {"d": 2}, "c": [2]}
    assert merge(below, above) == {"a": {"b": 1, "d": 2}, "c": [2]}
    assert (below, above) == ({"a": {"b": 1}, "c": [1]}, {"a": {"d": 2}, "c": [2]})


# ---- --set


def test_set_changes_what_it_names_and_nothing_else(file):
    path = file(teacher={"width": 48, "planted": {"layer": 1, "size": 3}})
    changed = load(path, ["training.lr=1e-2", "teacher.planted.size=5", "seeds=[3, 4]", "name=other"])
    plain = load(path).model_dump()
    plain["training"]["lr"], plain["teacher"]["planted"]["size"] = 0.01, 5.0
    plain["seeds"], plain["name"] = (3, 4), "other"
    assert changed.model_dump() == plain


def test_set_makes_what_is_not_there_yet(file):
    assert load(file(), ["teacher.fit.training.steps=3"]).teacher.fit.training.steps == 3
    assert load(file(), ["training.epochs=null", "training.steps=3"]).training.steps == 3
    assert load(file(), ["data.options.count=64"]).data.options == {"count": 64}
    assert load(file(data=None), ["data.image_size=32"]).data.image_size == 32


def test_set_reaches_into_lists_whose_items_are_written_short(file):
    path = file(methods=["fitnet", "none"], tasks=["artifacts"])
    experiment = load(path, ["methods.0.label=x", "methods.1.hyperparameters={}", "tasks.0.options.images=9"])
    assert [m.title() for m in experiment.methods] == ["x", "none"]
    assert [m.method for m in experiment.methods] == ["fitnet", "none"]
    assert experiment.tasks[0].options == {"images": 9}
    replaced = load(path, ["methods.0=singer", "methods.0.hyperparameters.rank=4"]).methods[0]
    assert (replaced.method, replaced.hyperparameters) == ("singer", {"rank": 4})


def test_set_takes_everything_after_the_first_sign_as_the_value(file):
    assert load(file(), ["methods.0.label=a=b: [c"]).methods[0].label == "a=b: [c"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.epochs", "'training.epochs': give key=value, such as training.epochs=5"),
        ("=5", "'=5': give key=value"),
        ("training..epochs=5", "'training..epochs=5': give key=value"),
        ("", "'': give key=value"),
        ("methods.2.label=x", "'methods.2.label=x': no item '2'; the list has items 0 .. 1; to change its length"),
        ("methods.-1=x", "'methods.-1=x': no item '-1'; the list has items 0 .. 1"),
        ("methods.²=x", "'methods.²=x': no item '²'"),
        ("methods.first.label=x", "'methods.first.label=x': no item 'first'"),
        ("plugins.0=x", "'plugins.0=x': no item '0'; the list has no items"),
        ("training.epochs.more=1", "'training.epochs.more=1': training.epochs is 1 and has no keys"),
        ("training.epoch=5", "training: no setting 'epoch'; did you mean 'epochs'?"),
        ("trainin.epochs=5", "top level: no setting 'trainin'; did you mean 'training'?"),
        ("training.lr=fast", "training.lr: must be a number, not 'fast'"),
        ("methods=[fitnet, none", "methods: must be a list, not '[fitnet, none'"),
        ("name=", "name: must be text, not empty"),
    ],
)
def test_nonsense_in_set_is_refused_in_words(file, setting, said):
    assert said in refusal(file(plugins=[]), setting)


def test_every_wrong_set_is_told_at_once(file):
    said = refusal(file(), "a", "methods.9.label=x")
    assert said.startswith("--set: 2 mistakes:") and "'a': give" in said and "no item '9'" in said


def test_plugins_of_the_command_line_come_beside_those_of_the_file(file, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            f"from harness.api import Method\n\n\nclass Mine(Method):\n    name = {name!r}\n    cite = 'x'\n"
        )
    one, two = str(tmp_path / "one.py"), str(tmp_path / "two.py")
    experiment = load(file(plugins=[one], methods=["one", "two"]), plugins=[two])
    assert experiment.plugins == (one, two)
    assert refusal(file(plugins=one), plugins=(two,)).startswith(f"{tmp_path / 'my.yaml'}: plugins: must be a list")


# ---- and back


names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
words = st.text(max_size=8)
positive = st.floats(1e-9, 1e9)
shares = st.floats(0, 1)
counts = st.integers(1, 10**6)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=5,
)
trainings = st.fixed_dictionaries(
    {"epochs": positive},
    optional={
        "batch_size": counts,
        "lr": positive,
        "betas": st.lists(st.floats(0, 0.99), min_size=2, max_size=2),
        "optimizer": st.sampled_from(["adamw", "sgd"]),
        "clip_grad": st.none() | positive,
        "min_lr_share": shares,
        "compile": st.booleans(),
    },
)
models = {"width": counts, "depth": counts, "options": st.dictionaries(words, plain, max_size=3)}
planted = st.fixed_dictionaries({"layer": st.integers(-9, 9), "size": positive})
data = st.fixed_dictionaries(
    {},
    optional={
        "name": words,
        "root": names,
        "image_size": counts,
        "limit": counts,
        "options": st.fixed_dictionaries({}, optional={"count": counts}),
        "augment": st.none() | st.just({"scale": [0.2, 1], "ratio": [1, 1.5]}),
    },
)
experiments = st.fixed_dictionaries(
    {
        "teacher": st.fixed_dictionaries(
            {}, optional={**models, "planted": planted, "fit": st.fixed_dictionaries({"training": trainings})}
        ),
        "student": st.fixed_dictionaries({}, optional=models),
        "training": trainings,
        "methods": st.lists(
            st.sampled_from(["none", "fitnet", "singer"])
            | st.fixed_dictionaries(
                {"method": st.just("fitnet"), "label": words.filter(bool)},
                optional={
                    "hyperparameters": st.fixed_dictionaries({"weight": positive}),
                    "teacher": st.fixed_dictionaries({"planted": planted}),
                },
            ),
            min_size=1,
            max_size=3,
            unique_by=str,
        ),
    },
    optional={
        "name": names,
        "seeds": st.lists(st.integers(0, 2**64), min_size=1, max_size=3, unique=True),
        "data": data,
        "tasks": st.just([{"task": "artifacts", "label": "a b"}, "classification"]),
        "bounds": st.booleans(),
    },
)


def ids(experiment: Experiment) -> Any:
    try:
        runs = student_runs(experiment)
    except UserError as error:
        return str(error)  # two rows that are the same run
    return [r.id for r in runs + bound_runs(experiment)], [t.key for t in task_runs(experiment)]


@settings(deadline=None, max_examples=60)
@given(experiments)
def test_an_experiment_written_as_yaml_and_read_again_is_the_same_with_the_same_runs(raw):
    try:
        experiment = parse(raw)
    except ConfigError as error:
        assert all("stands there twice" in sentence for sentence in error.mistakes), error
        return
    again = parse(yaml.safe_load(yaml.safe_dump(experiment.model_dump(mode="json"))))
    assert again == experiment
    assert ids(again) == ids(experiment)


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.sampled_from([*Experiment.model_fields, "nonsense"]), plain, max_size=6), st.booleans())
def test_whatever_stands_in_a_configuration_it_is_read_or_refused_in_words(raw, over):
    try:
        parse({**GOOD, **raw} if over else raw)
    except UserError as error:
        assert str(error).startswith("configuration: ")

"""A YAML file -> a frozen, validated Experiment; one error that lists every mistake. Imports no torch.

`base:` names a file to inherit from; `--set a.b=c` changes one value. Unknown keys and wrong types are
refused with the nearest valid name; a method's hyperparameters are checked against its signature.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from harness.catalogue import Catalogue, catalogue
from harness.errors import ConfigError, UserError, unknown


class Strict(BaseModel):
    """A value: frozen, no unknown keys, no silent conversion of text to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _as_float(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; a number that looks like one is taken as one."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value.strip()):
        return float(value)
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Real = Annotated[float, BeforeValidator(_as_float)]
Positive = Annotated[float, BeforeValidator(_as_float), Field(gt=0)]
NotNegative = Annotated[float, BeforeValidator(_as_float), Field(ge=0)]
Share = Annotated[float, BeforeValidator(_as_float), Field(ge=0, le=1)]
Range = Annotated[tuple[Real, Real], BeforeValidator(_as_tuple)]


class ModelSpec(Strict):
    """A timm model: by name, from the hub or a file, or fresh with its own measures."""

    model: str | None = None  # timm name, or local-dir:FOLDER
    pretrained: bool = False  # weights from the hub
    checkpoint: str | None = None  # .safetensors, or .pth with a state_dict
    width: Annotated[int, Field(gt=0)] | None = None
    depth: Annotated[int, Field(gt=0)] | None = None
    heads: Annotated[int, Field(gt=0)] | None = None
    patch: Annotated[int, Field(gt=0)] | None = None
    image_size: Annotated[int, Field(gt=0)] | None = None  # pixels; None: data.image_size
    options: dict[str, Any] = Field(default_factory=dict)  # further arguments of the timm model

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> ModelSpec:
        if self.pretrained and self.checkpoint is not None:
            raise ValueError("pretrained and checkpoint exclude each other; keep the one that is meant")
        return self

    def title(self) -> str:
        """What the model is called in a table."""
        if self.model is not None:
            changed = {k: v for k in ("width", "depth", "heads", "patch") if (v := getattr(self, k)) is not None}
            return self.model + "".join(f" {k}={v}" for k, v in changed.items())
        return f"ViT {self.width or 192}x{self.depth or 12}"


class Training(Strict):
    """How every student is trained. All of it is part of a run's identity."""

    epochs: Positive | None = None
    steps: Annotated[int, Field(gt=0)] | None = None  # instead of epochs
    batch_size: Annotated[int, Field(gt=0)] = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    betas: Range = (0.9, 0.999)
    momentum: Share = 0.9  # SGD only
    weight_decay: NotNegative = 1e-4
    warmup_epochs: NotNegative = 0.0
    min_lr_share: Share = 1e-4  # the cosine ends at this share of lr
    clip_grad: Positive | None = None  # norm over student and method together
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False

    @model_validator(mode="after")
    def _a_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self


class Fit(Strict):
    """A teacher that is trained here first, on the experiment's data, and kept."""

    method: str = "none"
    seed: int = 0
    training: Training


class Planted(Strict):
    """High-norm tokens of known place, direction and size put onto the teacher: `harness.planting`."""

    layer: int  # the block after which they appear; later blocks are blind to them
    size: NotNegative  # norm, in multiples of the layer's median patch norm; 0 gives the clean teacher
    share: Share = 0.03  # of the patches


class TeacherSpec(ModelSpec):
    """The teacher of a run, with what is done to it."""

    classes: Literal["imagenet-1k"] | None = None  # map the data's wnids to the teacher's logits
    fit: Fit | None = None
    planted: Planted | None = None

    @model_validator(mode="after")
    def _fit_needs_fresh(self) -> TeacherSpec:
        if self.fit is not None and (self.pretrained or self.checkpoint is not None):
            raise ValueError("fit trains a fresh teacher; leave out pretrained and checkpoint")
        return self


class AugmentSpec(Strict):
    """Random resized crop and flip of the training images."""

    scale: Range = (0.08, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    flip: Share = 0.5


class DataSpec(Strict):
    """What is distilled on, and what tasks read unless they name their own: `harness.data.Data`."""

    source: str = "scenes"
    name: str | None = None  # in records; None: the root's last part, or the source
    root: str | None = None
    train: str = "train"
    test: str = "test"
    image_size: Annotated[int, Field(gt=0)] = 64
    limit: Annotated[int, Field(gt=0)] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    on_bad_image: Literal["raise", "skip"] = "raise"
    resize: Literal["crop", "squash"] = "crop"
    crop_share: Annotated[float, BeforeValidator(_as_float), Field(gt=0, le=1)] = 1.0
    augment: AugmentSpec | None = AugmentSpec()

    def title(self) -> str:
        return self.name or (Path(self.root).resolve().name if self.root else self.source)

    def identity(self) -> dict[str, Any]:
        """All that decides what is read; no path of a machine."""
        return {**self.model_dump(mode="json", exclude={"root", "name", "on_bad_image"}), "name": self.title()}


class MethodSpec(Strict):
    """One row of the table: a method, its hyperparameters, and, for controls, another teacher."""

    method: str
    label: str | None = None
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    teacher: dict[str, Any] = Field(default_factory=dict)  # changes to the experiment's teacher

    def title(self) -> str:
        return self.label or self.method


class TaskSpec(Strict):
    """One task; `data` stands in for the experiment's data, `label` names the column."""

    task: str
    label: str | None = None
    data: DataSpec | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    def title(self) -> str:
        return self.label or self.task


class Runtime(Strict):
    """How, where and how safely it runs. None of it changes a result, so none is part of an identity."""

    device: str = "auto"
    num_workers: Annotated[int, Field(ge=0)] = 2
    max_group: Annotated[int, Field(gt=0)] = 8  # students that share one teacher pass
    checkpoint_steps: Annotated[int, Field(gt=0)] = 500
    checkpoint_minutes: Positive = 10.0
    log_steps: Annotated[int, Field(gt=0)] = 20
    batch_size: Annotated[int, Field(gt=0)] = 128  # of evaluation passes


def _named(key: str):
    """`- fitnet` is short for `- {method: fitnet}`."""
    return BeforeValidator(lambda v: {key: v} if isinstance(v, str) else v)


class Experiment(Strict):
    """One comparison: a teacher, a student's shape, data, training, methods, seeds, tasks."""

    name: str = "experiment"
    teacher: TeacherSpec
    student: ModelSpec
    data: DataSpec = DataSpec()
    training: Training
    methods: Annotated[
        tuple[Annotated[MethodSpec, _named("method")], ...], BeforeValidator(_as_tuple), Field(min_length=1)
    ]
    seeds: Annotated[tuple[int, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = (0,)
    tasks: Annotated[tuple[Annotated[TaskSpec, _named("task")], ...], BeforeValidator(_as_tuple)] = (
        TaskSpec(task="classification"),
        TaskSpec(task="artifacts"),
    )
    bounds: bool = True  # rows for the teacher itself and for the untrained student
    runtime: Runtime = Runtime()
    plugins: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()

    def known(self) -> Catalogue:
        """Every method, task and source that this experiment can name."""
        return catalogue(self.plugins)

    def teacher_of(self, method: MethodSpec) -> TeacherSpec:
        """The experiment's teacher with the method's own changes."""
        if not method.teacher:
            return self.teacher
        return TeacherSpec.model_validate(merge(self.teacher.model_dump(), method.teacher))


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mappings key by key, anything else replaced."""
    merged = dict(below)
    for key, value in above.items():
        mine = merged.get(key)
        merged[key] = merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged


def load(path: str | Path, settings: Sequence[str] = (), plugins: Sequence[str] = ()) -> Experiment:
    """Read a configuration file.

    Args:
        settings: "a.b=c" each; the value is read as YAML; a list's items by number (methods.0.label=x).
        plugins: files with methods or tasks, beside those that the file names.

    Raises:
        ConfigError: with every mistake that was found.
    """
    raw = read_yaml(Path(path))
    mistakes: list[str] = []
    for setting in settings:
        try:
            _set(raw, setting)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError(mistakes, "--set")
    if plugins:
        raw["plugins"] = [*(raw.get("plugins") or []), *plugins]
    return parse(raw, str(path))


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """One file with what its `base:` gives it. Never runs code (yaml.safe_load)."""
    if path.resolve() in above:
        raise ConfigError([f"base: {path} inherits from itself"], str(above[0]))
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise UserError(unknown("configuration file", path.name, near) + f" (in {path.parent})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} must hold a mapping of settings, not {type(raw).__name__}")
    base = raw.pop("base", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise ConfigError([f"base must name one file, not {base!r}"], str(path))
    return merge(read_yaml(path.parent / base, (*above, path.resolve())), raw)


def _set(raw: dict[str, Any], setting: str) -> None:
    key, sign, text = setting.partition("=")
    if not sign or not key.strip():
        raise ValueError(f"{setting!r}: give key=value, such as training.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    place: Any = raw
    *path, last = key.strip().split(".")
    for part in path:
        if isinstance(place, list):
            place = _item(place, part, setting)
        else:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
        if not isinstance(place, dict | list):
            raise ValueError(f"{setting!r}: {part!r} is {place!r} and has no keys")
    if isinstance(place, list):
        _item(place, last, setting)
        place[int(last)] = value
    else:
        place[last] = value


def _item(items: list[Any], number: str, setting: str) -> Any:
    if not number.isdigit() or int(number) >= len(items):
        raise ValueError(f"{setting!r}: no item {number!r}; the list has 0 .. {len(items) - 1}")
    return items[int(number)]


def parse(raw: dict[str, Any], where: str = "configuration") -> Experiment:
    """Plain values -> Experiment. Raises ConfigError with every mistake."""
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(sorted({_sentence(e, Experiment) for e in error.errors()}), where) from None
    mistakes = _semantic_mistakes(experiment)
    if mistakes:
        raise ConfigError(mistakes, where)
    return experiment


def _semantic_mistakes(experiment: Experiment) -> list[str]:
    """What types alone do not show: names that do not exist, hyperparameters, rows with one name."""
    known = experiment.known()
    mistakes: list[str] = []

    def named(kind: str, entries: dict[str, Any], name: str, given: dict[str, Any], place: str) -> None:
        if name not in entries:
            mistakes.append(f"{place}: {unknown(kind, name, entries)}")
            return
        try:
            known.resolve(kind, name, given)
        except ConfigError as error:
            mistakes.extend(f"{place}: {m}" for m in error.mistakes)

    sources = [("data", experiment.data)]
    for i, spec in enumerate(experiment.methods):
        named("method", known.methods, spec.method, spec.hyperparameters, f"methods.{i}")
        try:
            experiment.teacher_of(spec)
        except ValidationError as error:
            mistakes.extend(f"methods.{i}.teacher: {_sentence(e, TeacherSpec)}" for e in error.errors())
    for i, task in enumerate(experiment.tasks):
        named("task", known.tasks, task.task, task.options, f"tasks.{i}")
        if task.data is not None:
            sources.append((f"tasks.{i}.data", task.data))
    for place, data in sources:
        named("source", known.sources, data.source, data.options, place)
    fit = experiment.teacher.fit
    if fit is not None and fit.method not in known.methods:
        mistakes.append(f"teacher.fit: {unknown('method', fit.method, known.methods)}")
    checkpoint = experiment.teacher.checkpoint
    if checkpoint is not None and not Path(checkpoint).is_file():
        mistakes.append(f"teacher.checkpoint: the file {checkpoint!r} does not exist")
    for what, titles in (
        ("methods", [m.title() for m in experiment.methods]),
        ("tasks", [t.title() for t in experiment.tasks]),
        ("seeds", [str(s) for s in experiment.seeds]),
    ):
        twice = sorted({t for t in titles if titles.count(t) > 1})
        if twice:
            mistakes.append(f"{what}: {', '.join(twice)} stands there twice; give each its own label")
    return mistakes


def _sentence(error: Any, model: type[BaseModel]) -> str:
    """One of pydantic's errors in words, with the nearest valid key."""
    loc = tuple(part for part in error["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    place = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        fields = _fields(model, loc[:-1])
        return f"{'.'.join(str(p) for p in loc[:-1]) or 'top level'}: {unknown('setting', str(loc[-1]), fields)}"
    if error["type"] == "missing":
        return f"{place} is missing"
    said = error["msg"].removeprefix("Value error, ")
    given = error.get("input")
    shown = f", not {given!r}" if not isinstance(given, dict | list | BaseModel) else ""
    return f"{place or 'top level'}: {said[0].lower() + said[1:]}{shown}"


def _fields(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """Names of the settings at a place of the configuration."""
    for part in path:
        if isinstance(part, int):
            continue  # an item of the list whose type was already taken
        field = model.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_model_in(a) for a in typing.get_args(annotation))
    return next((m for m in found if m is not None), None)

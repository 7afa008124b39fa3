"""The parts of an experiment as frozen, validated values: models, training, data, methods, tasks. No torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LOCAL = "local-dir:"  # timm's prefix of a folder
EXPORTED = ("config.json", "model.safetensors")  # what the folder of an exported model holds


class Strict(BaseModel):
    """A value: frozen, no unknown keys, no silent conversion of text to numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _as_float(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; a number that looks like one is taken as one."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value.strip()):
        return float(value)
    return value


def as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """As its own YAML and JSON would give it back: what is hashed is what is meant."""
    try:
        return json.loads(json.dumps(value, sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"holds more than finite numbers, text, lists and mappings: {error}") from None


def _is_file_name(value: str) -> str:
    if not re.fullmatch(r"\w[\w .+=,@-]*", value):
        raise ValueError(
            f"must be able to name a folder, not {value!r}: begin with a letter or digit; of signs, only . _ - + = , @"
        )
    return value


Real = Annotated[float, BeforeValidator(_as_float)]
Positive = Annotated[float, BeforeValidator(_as_float), Field(gt=0)]
NotNegative = Annotated[float, BeforeValidator(_as_float), Field(ge=0)]
Share = Annotated[float, BeforeValidator(_as_float), Field(ge=0, le=1)]
Count = Annotated[int, Field(gt=0)]
Range = Annotated[tuple[Real, Real], BeforeValidator(as_tuple)]
Beta = Annotated[float, BeforeValidator(_as_float), Field(ge=0, lt=1)]
FileName = Annotated[str, AfterValidator(_is_file_name)]
Options = Annotated[dict[str, Any], AfterValidator(_plain)]


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
    options: Options = Field(default_factory=dict)  # further arguments of the timm model

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> ModelSpec:
        if self.pretrained and self.checkpoint is not None:
            raise ValueError("pretrained and checkpoint exclude each other; keep the one that is meant")
        return self

    def exported(self) -> Path | None:
        """The folder of an exported model that `model` names, or None."""
        return Path(self.model.removeprefix(LOCAL)) if self.model is not None and self.model.startswith(LOCAL) else None

    def title(self) -> str:
        """What the model is called in a table."""
        if self.model is not None:
            folder = self.exported()
            name = self.model if folder is None else folder.resolve().name  # no path of a machine
            changed = {k: v for k in ("width", "depth", "heads", "patch") if (v := getattr(self, k)) is not None}
            return name + "".join(f" {k}={v}" for k, v in changed.items())
        return f"ViT {self.width or 192}x{self.depth or 12}"


class Training(Strict):
    """How every student is trained. All of it is part of a run's identity."""

    epochs: Positive | None = None
    steps: Annotated[int, Field(gt=0)] | None = None  # instead of epochs
    batch_size: Annotated[int, Field(gt=0)] = 64
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Positive = 1e-3
    betas: Annotated[tuple[Beta, Beta], BeforeValidator(as_tuple)] = (0.9, 0.999)
    momentum: Share = 0.9  # SGD only
    weight_decay: NotNegative = 1e-4
    warmup_epochs: NotNegative = 0.0
    min_lr_share: Share = 1e-4  # the cosine ends at this share of lr
    clip_grad: Positive | None = None  # norm over student and method together
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False  # whether NVIDIA GPUs may round factors of fp32 to 10 bits: harness.training.precision
    compile: bool = False

    @model_validator(mode="after")
    def _a_length(self) -> Training:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"give either epochs or steps; {'neither is' if self.steps is None else 'both are'} given")
        return self

    def steps_of(self, an_epoch: int) -> int:
        """How many steps it takes, where an epoch has so many."""
        return self.steps or max(1, round((self.epochs or 0) * an_epoch))

    def identity(self) -> dict[str, Any]:
        """tf32 is left out while it is off, so that what was trained before it could be set stays known."""
        return self.model_dump(mode="json", exclude=None if self.tf32 else {"tf32"})


class Fit(Strict):
    """A teacher that is trained here first, on the experiment's data, and kept."""

    method: str = "none"
    seed: int = 0
    training: Training

    def identity(self) -> dict[str, Any]:
        return {"method": self.method, "seed": self.seed, "training": self.training.identity()}


class Planted(Strict):
    """High-norm tokens of known place, direction and size put onto the teacher: `harness.teachers.planting`."""

    layer: int  # the block after which they appear; later blocks are blind to them
    size: NotNegative  # norm, in multiples of the layer's median patch norm; 0 gives the clean teacher
    share: Share = 0.03  # of the patches
    places: Literal["smallest", "random"] = "smallest"  # the patches of the smallest norm, or whatever their norm

    def identity(self) -> dict[str, Any]:
        """Places are left out while they are the default, so that what was computed before them stays known."""
        plain = self.model_dump(mode="json")
        return {k: v for k, v in plain.items() if k != "places" or v != "smallest"}


class RegistersAppended(Strict):
    """Registers for a teacher that was trained without: `harness.teachers.register_neurons` (arXiv 2506.08010)."""

    images: Count = 256  # training images on which the neurons are sought
    registers: Count = 1
    threshold: Positive | None = None  # norm over which a token is high; None: robust z over 5.5 in its image
    layer: int = -2  # the block after which high norms are told; default: the one before the last
    top: Count | None = None  # neurons; None: the published share of all that are searched
    last_layer: int | None = None  # neurons are sought in blocks 0 .. last_layer; None: told by the data


class ShiftedViews(Strict):
    """Patch tokens averaged over views shifted by whole patches (PH-Reg's first half, arXiv 2505.21501)."""

    reach: Count = 1  # the farthest shift, in patches
    pattern: Literal["cross", "square"] = "cross"  # along one axis at a time: 4 reach + 1 views; or all of them


class Clip(Strict):
    """Patch norms clipped, image by image; `quantile: 0.97`, SiNGER's, where neither is given."""

    quantile: Share | None = None  # of the image's patch norms
    median: Positive | None = None  # or so many times the image's median patch norm

    @model_validator(mode="before")
    @classmethod
    def _a_quantile_by_default(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("quantile") is None and value.get("median") is None:
            return {**value, "quantile": 0.97}
        return value

    @model_validator(mode="after")
    def _one_limit(self) -> Clip:
        if self.quantile is not None and self.median is not None:
            raise ValueError("quantile and median exclude each other; set the one that is not meant to null")
        return self


class Standardise(Strict):
    """Each block's tokens standardised: PHI-S (arXiv 2410.01680) or channel by channel."""

    kind: Literal["phi_s", "channel"] = "phi_s"
    images: Count = 512  # training images that the statistics are of


class RegisterTeacher(Strict):
    """The teacher's twin that was trained with registers, in its place: `harness.twins`."""

    model: str | None = None  # None: the twin that timm has; or the same architecture where it is trained here
    checkpoint: str | None = None
    pretrained: bool | None = None  # None: as the teacher itself
    registers: Count = 4  # of a teacher that is trained here, or fresh

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> RegisterTeacher:
        if self.pretrained and self.checkpoint is not None:
            raise ValueError("pretrained and checkpoint exclude each other; keep the one that is meant")
        return self


REPAIRS = ("test_time_registers", "shifted_views", "clip", "standardise")  # in the order in which they are applied


class TeacherSpec(ModelSpec):
    """The teacher of a run, with what is done to it, in this order.

    register_teacher replaces the model; then planted, test_time_registers, shifted_views, clip, standardise.
    """

    classes: Literal["imagenet-1k"] | None = None  # map the data's wnids to the teacher's logits
    fit: Fit | None = None
    register_teacher: RegisterTeacher | None = None
    planted: Planted | None = None
    test_time_registers: RegistersAppended | None = None
    shifted_views: ShiftedViews | None = None
    clip: Clip | None = None
    standardise: Standardise | None = None

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

    @model_validator(mode="after")
    def _ranges_go_up(self) -> AugmentSpec:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high:
                raise ValueError(f"{name} must go up from more than 0, such as [0.5, 1.0], not [{low:g}, {high:g}]")
        return self


class DataSpec(Strict):
    """What is distilled on, and what tasks read unless they name their own: `harness.data.Data`."""

    source: str = "scenes"
    name: str | None = None  # in records; None: the root's last part, or the source
    root: str | None = None
    train: str = "train"
    test: str = "test"
    image_size: Annotated[int, Field(gt=0)] = 64
    limit: Annotated[int, Field(gt=0)] | None = None
    held_out: Annotated[float, BeforeValidator(_as_float), Field(gt=0, lt=1)] | None = None  # share of train, for test
    options: dict[str, Any] = Field(default_factory=dict)
    on_bad_image: Literal["raise", "skip"] = "raise"
    resize: Literal["crop", "squash"] = "crop"
    crop_share: Annotated[float, BeforeValidator(_as_float), Field(gt=0, le=1)] = 1.0
    augment: AugmentSpec | None = AugmentSpec()

    def title(self) -> str:
        name = self.name or (Path(self.root).resolve().name if self.root else self.source)
        return name if self.held_out is None else f"{name}, {self.held_out:g} of {self.train} held out"

    def identity(self) -> dict[str, Any]:
        """All that decides what is read; no path of a machine."""
        unsaid = {"root", "name", "on_bad_image"} | ({"held_out"} if self.held_out is None else set())
        return {**self.model_dump(mode="json", exclude=unsaid), "name": self.title()}


class MethodSpec(Strict):
    """One row of the table: a method, its hyperparameters, and, for controls, another teacher.

    search and trials change no run: they say where `singer-bench tune` looks, and how long it has looked.
    """

    method: str
    label: str | None = None
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    teacher: dict[str, Any] = Field(default_factory=dict)  # changes to the experiment's teacher
    search: Options | None = None  # changes to the method's search spaces: harness.search
    trials: Annotated[int, Field(gt=0)] | None = None  # settings among which these hyperparameters were chosen

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


def _is_group_size(value: Any) -> Any:
    if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"must be a whole number greater than 0, or auto, not {value!r}")
    return value


GroupSize = Annotated[int | Literal["auto"], BeforeValidator(_is_group_size)]


LoggerName = Literal["tensorboard", "wandb", "mlflow"]
LoggerNames = Annotated[tuple[LoggerName, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else as_tuple(v))]


class Runtime(Strict):
    """How, where and how safely it runs. None of it changes a result, so none is part of an identity."""

    device: str = "auto"
    num_workers: Annotated[int, Field(ge=0)] = 2
    max_group: GroupSize = 8  # students that share one teacher pass; auto: as many as a GPU is measured to hold
    checkpoint_steps: Annotated[int, Field(gt=0)] = 500
    checkpoint_minutes: Positive = 10.0
    log_steps: Annotated[int, Field(gt=0)] = 20
    log: LoggerNames | None = None  # who shows what is logged and measured; None: tensorboard, where it is installed
    batch_size: Annotated[int, Field(gt=0)] = 128  # of evaluation passes
    cache_gb: Positive | None = None  # of features on disk: what was used longest ago goes first; None: no limit


def _is_one_word(value: str) -> str:
    if not value or re.search(r"\s", value):
        raise ValueError(f"must be one word, not {value!r}")
    return value


Word = Annotated[str, AfterValidator(_is_one_word)]


class Submission(Strict):
    """What a submitted job asks for: `singer-bench submit`. None of it is part of an identity.

    None: told by the cluster or machine where that is possible, or else left to it. Slurm alone knows partition,
    account, qos and constraint; gpu_memory_gb is for this machine's own queue.
    """

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None  # of nodes' features
    nodes: Count = 1
    gpus: Annotated[int, Field(ge=0)] | None = None  # a node; None: one where there are any and the device may be one
    ranks: Count | None = None  # processes a node; None: one a GPU, or one
    cpus: Count | None = None  # a process; None: one, and one for each data worker
    memory_gb: Positive | None = None  # a node
    gpu_memory_gb: Positive | None = None  # of one GPU, instead of whole ones: jobs share it
    minutes: Count | None = None  # of one start, not of the work; None: four hours, or less where no more is given
    setup: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()  # lines of shell before Python starts
    max_jobs: Count | None = None  # of one submission that run at once
    requeues: Annotated[int, Field(ge=0)] = 20  # how often one job is started again
    signal_seconds: Count = 120  # that a job has for saving, before its minutes are over

    @model_validator(mode="after")
    def _fit_together(self) -> Submission:
        mistakes = []
        if self.gpu_memory_gb is not None and self.gpus:
            mistakes.append("gpus and gpu_memory_gb exclude each other: whole GPUs, or a part of one")
        if self.gpus and self.ranks is not None and self.ranks != self.gpus:
            mistakes.append(f"ranks is {self.ranks} with {self.gpus} GPUs a node; leave it out: one process a GPU")
        if self.minutes is not None and self.signal_seconds >= 60 * self.minutes:
            mistakes.append(f"signal_seconds is {self.signal_seconds}, which is no less than {self.minutes} min")
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self


def _named(key: str):
    return BeforeValidator(lambda v: {key: v} if isinstance(v, str) else v)


MethodItem = Annotated[MethodSpec, _named("method")]
TaskItem = Annotated[TaskSpec, _named("task")]

"""`singer-bench figures`: which columns there are, and the files: pictures and captions."""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from torch import Tensor

from harness import models, students
from harness.config import Experiment, parse
from harness.data import Data
from harness.environment import device_of
from harness.errors import ConfigError, UserError, unknown
from harness.parsing.sentences import sentences
from harness.parsing.yaml_files import read_yaml
from harness.pictures import captions, drawing, page
from harness.pictures.images import Pictures, evenly, read_images
from harness.pictures.maps import Column, changed_layers, compute, counterpart, targets_column, vit_column
from harness.registry import load_plugin
from harness.runs import Run, Workspace, student_runs
from harness.sources import Source
from harness.specs import LOCAL, ModelSpec, TeacherSpec
from harness.training.builder import Builder

SAMPLE = 64  # images that outlier shares and histograms are of, however many are shown
TREATMENTS = tuple(sorted(TeacherSpec.model_fields.keys() - ModelSpec.model_fields.keys() - {"classes", "fit"}))
_ORDER = ("teacher", "target", "student")  # of columns


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What the user asks to see.

    Attributes:
        images: a folder; None: test images of the experiment's data. count: how many are shown.
        layer: the teacher's block, students' in proportion; None: the last.
        mark: row and column of a patch on the teacher's grid; None: the one in the middle.
        methods: labels of rows; None: all. formats: of the files.
        hide_images: whether the images' own pixels are left out of the pictures.
    """

    images: Path | None = None
    count: int = 4
    layer: int | None = None
    mark: tuple[int, int] | None = None
    methods: tuple[str, ...] | None = None
    formats: tuple[str, ...] = ("png", "svg")
    hide_images: bool = False

    def __post_init__(self) -> None:
        for format in self.formats:
            if format not in page.FORMATS:
                raise UserError(unknown("picture format", format, page.FORMATS))
        if not self.formats:
            raise UserError(f"no picture format is named; give some of {', '.join(page.FORMATS)}")
        if self.count < 1:
            raise UserError(f"--count is {self.count}; show 1 image or more")


def parts(text: str) -> tuple[str, ...]:
    """What stands between the commas; a part that holds a comma itself is written in double quotes."""
    found = next(csv.reader([text], skipinitialspace=True), [])
    return tuple(part.strip() for part in found if part.strip())


def place(text: str) -> tuple[int, int]:
    """ "3,4" -> row 3, column 4."""
    found = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", text)
    if found is None:
        raise UserError(f"--mark {text!r} is not ROW,COLUMN of a patch, such as 7,7")
    return int(found[1]), int(found[2])


def workspace_figures(workspace: Workspace, output: Path, wanted: Wanted, name: str | None = None) -> list[Path]:
    """Teacher, targets and students of an experiment's first seed that has finished students.

    Args:
        name: the experiment's, where the workspace holds more than one.

    Raises:
        UserError: no experiment, no finished student, or whatever `Wanted` asks for in vain.
    """
    experiment = _experiment(workspace, name)
    for plugin in experiment.plugins:
        load_plugin(plugin)
    runs = _finished(experiment, workspace, wanted.methods)

    def fit(run: Run) -> None:
        if not workspace.is_trained(run):
            raise UserError(
                f"the teacher of {experiment.name!r} has not been trained yet; `singer-bench run` trains it"
            )

    builder = Builder(experiment, workspace, device_of(experiment), fit)
    source = builder.data.open("test") if wanted.images is None else Pictures(wanted.images)
    about = f"Experiment {experiment.name}, seed {runs[0].info.seed}."
    return _write(builder, source, output, wanted, functools.partial(_of_runs, builder, runs, wanted.layer), about)


def model_figures(
    model: dict[str, Any], repairs: Sequence[str], output: Path, wanted: Wanted, size: int | None = None
) -> list[Path]:
    """One model, and beside it the same one after each of `repairs` (NAME or NAME={settings} of `TREATMENTS`).

    Args:
        model: `harness.specs.ModelSpec` as plain values. size: pixels; None: an exported model's own, or 224.
    """
    if wanted.images is None:
        raise UserError("a model alone has no data; name a folder of pictures with --images")
    if wanted.methods is not None:
        raise UserError("--methods chooses among a workspace's rows; a model alone has none")
    fetched = model.get("checkpoint") is None and not str(model["model"]).startswith(LOCAL)
    spec = _teacher_spec({**model, "pretrained": fetched})
    specs = {spec.title(): spec, **{repair: _repaired(spec, repair) for repair in repairs}}
    folder = spec.exported()
    size = size or (224 if folder is None else models.exported_size(folder))
    source = Pictures(wanted.images)
    experiment = parse(
        {
            "teacher": {},
            "student": {},
            "data": {"image_size": size},
            "training": {"steps": 1},
            "methods": ["none"],
        }
    )
    with tempfile.TemporaryDirectory() as nowhere:
        builder = Builder(experiment, Workspace(nowhere), device_of(experiment), lambda run: None)
        # What a repair has to learn from images it learns from these.
        builder.data = Data.of_sources({"train": source, "test": source}, size, wanted.images.name)
        columns = functools.partial(_of_specs, builder, specs, wanted.layer)
        return _write(builder, source, output, wanted, columns, f"Model {spec.title()}, {size} pixels.")


def _teacher_spec(plain: dict[str, Any]) -> TeacherSpec:
    try:
        return TeacherSpec.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(sentences(error, TeacherSpec)) from error


def _repaired(spec: TeacherSpec, repair: str) -> TeacherSpec:
    """The specification with one treatment, written NAME or NAME={settings in YAML}."""
    name, _, text = repair.partition("=")
    if name not in TREATMENTS:
        raise UserError(unknown("repair", name, TREATMENTS))
    try:
        settings = yaml.safe_load(text) if text else {}
    except yaml.YAMLError as error:
        raise UserError(f"--repair {repair!r}: {text!r} is not valid YAML; write NAME={{setting: value}}") from error
    return _teacher_spec({**spec.model_dump(), name: settings})


def _experiment(workspace: Workspace, name: str | None) -> Experiment:
    """The workspace's experiment of that name, or its only one."""
    if not workspace.root.is_dir():
        raise UserError(f"no workspace {str(workspace.root)!r}; `singer-bench run CONFIG` makes one")
    paths = {path.stem: path for path in sorted((workspace.root / "experiments").glob("*.yaml"))}
    if not paths:
        raise UserError(f"{str(workspace.root)!r} holds no experiment; `singer-bench run CONFIG` starts one")
    if name is None and len(paths) > 1:
        raise UserError(f"the workspace holds {len(paths)} experiments; name one: --experiment {' | '.join(paths)}")
    chosen = next(iter(paths)) if name is None else name
    if chosen not in paths:
        raise UserError(unknown("experiment", chosen, paths))
    return parse(read_yaml(paths[chosen]), str(paths[chosen]))


def _finished(experiment: Experiment, workspace: Workspace, labels: tuple[str, ...] | None) -> list[Run]:
    """Trained students of the first seed that has any, only those of `labels` where it is given."""
    everyone = student_runs(experiment)
    known = [method.title() for method in experiment.methods]
    for label in labels or ():
        if label not in known:
            raise UserError(unknown("method label", label, known))
    wanted = [run for run in everyone if labels is None or run.info.label in labels]
    for seed in experiment.seeds:
        found = [run for run in wanted if run.info.seed == seed and workspace.is_trained(run)]
        if found:
            return found
    whose = "" if labels is None else f" of {', '.join(labels)}"
    raise UserError(
        f"the workspace {str(workspace.root)!r} holds no finished student{whose}; `singer-bench run CONFIG` goes on"
    )


Columns = Callable[[Tensor, list[str]], Iterator[Column]]  # (an image to try targets on, remarks to add to)


def _of_specs(
    builder: Builder, specs: dict[str, TeacherSpec], layer: int | None, probe: Tensor, remarks: list[str]
) -> Iterator[Column]:
    """A teacher a specification."""
    for title, spec in specs.items():
        yield vit_column(title, "teacher", builder.teacher(spec), -1 if layer is None else layer)


def _of_runs(
    builder: Builder, runs: Sequence[Run], layer: int | None, probe: Tensor, remarks: list[str]
) -> Iterator[Column]:
    """Every teacher with the targets of its runs, so that each is built once; then the students."""
    plain = builder.experiment.teacher
    specs = [plain]
    specs += [run.teacher for run in runs if run.teacher not in specs and run.teacher != plain]
    depth, shown = 0, 0
    for spec in {repr(spec): spec for spec in specs}.values():
        mine = [run for run in runs if run.teacher == spec]
        whose = "" if spec == plain else f" of {', '.join(run.info.label for run in mine)}"
        teacher = builder.teacher(spec)
        column = vit_column(f"teacher{whose}", "teacher", teacher, -1 if layer is None else layer)
        if spec == plain:
            depth, shown = column.depth, column.layer
        yield column
        for run in mine:
            method = builder.trained_method(run, teacher)
            changed = changed_layers(method, teacher, probe)
            if not changed:
                remarks.append(
                    f"{run.info.label}: imitates the teacher's own tokens or none, so it has no target column."
                )
                continue
            block = changed[-1] if layer is None else column.layer
            if block in changed:
                yield targets_column(f"target of {run.info.label}", method, teacher, changed, block)
            else:
                blocks = ", ".join(map(str, changed))
                remarks.append(
                    f"{run.info.label}: no target column, since it changes the tokens of blocks {blocks} only."
                )
    for run in runs:
        folder = builder.workspace.student(run.id)
        students.checked(folder)
        student = models.load_exported(folder, builder.device)
        yield vit_column(run.info.label, "student", student, counterpart(shown, student.depth, depth))


def _write(builder: Builder, source: Source, output: Path, wanted: Wanted, columns: Columns, about: str) -> list[Path]:
    """Compute every column, draw, and write pictures and captions."""
    view = builder.data.view()
    images, names = read_images(source, view, evenly(len(source), wanted.count))
    sample, _ = read_images(source, view, evenly(len(source), SAMPLE))
    mark, remarks, maps = None, [], []
    for column in columns(images[:1].to(builder.device), remarks):
        mark = mark or _place(wanted.mark, column.grid)  # on the grid of the teacher, which comes first
        maps.append(compute(column, images, sample, mark, builder.device))
    assert mark is not None
    maps.sort(key=lambda found: _ORDER.index(found.kind))
    pixels = images.permute(0, 2, 3, 1).mul(255).round().byte().numpy()
    shown = drawing.Shown(pixels, names, mark, wanted.hide_images)
    written: dict[str, list[Path]] = {}
    for name, figures in (
        ("norms", drawing.norm_maps(shown, maps)),
        ("pca", drawing.pca_maps(shown, maps)),
        ("similarity", drawing.similarity_maps(shown, maps)),
        ("histograms", drawing.level_charts(maps)),
    ):
        written[name] = []
        for number, figure in enumerate(figures, start=1):
            stem = name if len(figures) == 1 else f"{name}-{number}"
            for format in wanted.formats:
                written[name].append(page.save(output / f"{stem}.{format}", page.rendered(figure, format)))
    _remove_earlier(output, written, wanted.formats)
    text = captions.captions(
        maps, names, len(sample), {k: [p.name for p in v] for k, v in written.items()}, about, remarks
    )
    return [*(path for paths in written.values() for path in paths), page.save(output / "captions.md", text.encode())]


def _remove_earlier(output: Path, written: Mapping[str, Sequence[Path]], formats: Sequence[str]) -> None:
    """Pages of an earlier call that this one did not make: the captions would be wrong about them."""
    for name, now in written.items():
        for path in output.glob(f"{name}*"):
            page_of = re.fullmatch(rf"{name}(-\d+)?\.({'|'.join(formats)})", path.name)
            if page_of is not None and path not in now:
                path.unlink()


def _place(mark: tuple[int, int] | None, grid: tuple[int, int]) -> tuple[float, float]:
    """The middle of the marked patch, down and right in [0, 1)."""
    if mark is None:
        mark = (grid[0] // 2, grid[1] // 2)
    if not (0 <= mark[0] < grid[0] and 0 <= mark[1] < grid[1]):
        raise UserError(
            f"--mark {mark[0]},{mark[1]} is outside the grid of {grid[0]} x {grid[1]} patches; "
            f"give a row in 0 .. {grid[0] - 1} and a column in 0 .. {grid[1] - 1}"
        )
    return (mark[0] + 0.5) / grid[0], (mark[1] + 0.5) / grid[1]

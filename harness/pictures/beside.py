"""Maps of each student beside its teacher, as PNGs for the page: norms and principal components of a few images.

On the CPU, so that a page made while a grid trains takes nothing from its GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from harness import models, students
from harness.config import Experiment, parse
from harness.errors import UserError
from harness.parsing.yaml_files import read_yaml
from harness.pictures import drawing, page
from harness.pictures.images import evenly, read_images
from harness.pictures.maps import Maps, compute, counterpart, vit_column
from harness.registry import load_plugin
from harness.runs import Run, Workspace, student_runs
from harness.training.builder import Builder

IMAGES, MOST = 3, 32  # images a student; students of a page
DEVICE = "cpu"
_MIDDLE = (0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class StudentMap:
    """kind: in two words; text: a caption; data: a PNG's bytes."""

    kind: str
    text: str
    data: bytes = dataclasses.field(repr=False)


class Beside:
    """Maps of a workspace's students; one that was drawn is not drawn again.

    Args:
        hide_images: whether the images' own pixels are left out.
        say: is told, in a sentence each, why students have no maps.
    """

    def __init__(self, workspace: Workspace, hide_images: bool, say: Callable[[str], None]) -> None:
        self.workspace, self.hide_images, self.say = workspace, hide_images, say
        self.drawn: dict[str, list[StudentMap]] = {}
        self.said: set[str] = set()

    def maps(self) -> dict[str, list[StudentMap]]:
        """By run id, of the first seed of each experiment that has finished students; `MOST` at the most."""
        for path in sorted((self.workspace.root / "experiments").glob("*.yaml")):
            try:
                self._add(parse(read_yaml(path), str(path)))
            except (UserError, OSError) as error:
                self._tell(f"no maps of experiment {path.stem}: {error}")
        return self.drawn

    def _tell(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.add(sentence)
            self.say(sentence)

    def _fitted(self, run: Run) -> None:
        if not self.workspace.is_trained(run):
            raise UserError("its teacher has not been trained yet")

    def _add(self, experiment: Experiment) -> None:
        runs = [run for run in _finished(experiment, self.workspace) if run.id not in self.drawn]
        room = MOST - len(self.drawn)
        if len(runs) > room:
            self._tell(f"maps of the first {MOST} students only; `singer-bench figures` draws the others")
        if not runs[:room]:
            return
        for plugin in experiment.plugins:
            load_plugin(plugin)
        builder = Builder(experiment, self.workspace, DEVICE, self._fitted)
        source, view = builder.data.open("test"), builder.data.view()
        images, names = read_images(source, view, evenly(len(source), IMAGES))
        pixels = images.permute(0, 2, 3, 1).mul(255).round().byte().numpy()
        shown = drawing.Shown(pixels, names, _MIDDLE, self.hide_images)
        for run, mine in _of_runs(builder, runs[:room], images):
            self.drawn[run.id] = list(_drawn(shown, mine))


def _finished(experiment: Experiment, workspace: Workspace) -> list[Run]:
    """Trained students of the first seed that has any."""
    everyone = student_runs(experiment)
    for seed in experiment.seeds:
        found = [run for run in everyone if run.info.seed == seed and workspace.is_trained(run)]
        if found:
            return found
    return []


def _of_runs(builder: Builder, runs: Sequence[Run], images: Tensor) -> Iterator[tuple[Run, list[Maps]]]:
    """Each run with the maps of its teacher and its student; a teacher of several is built once."""
    teachers: dict[str, tuple[Any, Maps]] = {}
    for run in runs:
        key = repr(run.teacher)
        if key not in teachers:
            column = vit_column("teacher", "teacher", builder.teacher(run.teacher), -1)
            teachers[key] = column, compute(column, images, images, _MIDDLE)
        column, of_teacher = teachers[key]
        folder = builder.workspace.student(run.id)
        students.checked(folder)
        student = models.load_exported(folder, DEVICE)
        layer = counterpart(column.layer, student.depth, column.depth)
        mine = vit_column(run.info.label, "student", student, layer)
        yield run, [of_teacher, compute(mine, images, images, _MIDDLE)]


def _drawn(shown: drawing.Shown, maps: Sequence[Maps]) -> Iterator[StudentMap]:
    norms = (
        "Norms of patch tokens after the last block, before the final norm. Each column has its own colours, from 0 "
        "to its largest norm."
    )
    components = (
        "The first three principal components of unit-length patch tokens as red, green and blue. Colours of the two "
        "columns have nothing to do with each other."
    )
    for kind, text, draw in (
        ("Patch norms", norms, drawing.norm_maps),
        ("Principal components", components, drawing.pca_maps),
    ):
        for figure in draw(shown, maps):
            yield StudentMap(kind, text, page.rendered(figure, "png"))

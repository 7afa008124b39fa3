"""Maps of each student beside its teacher, as PNGs for the page: norms and principal components of a few images.

On the CPU, so that a page made while a grid trains takes nothing from its GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from harness import models, students
from harness.config import Experiment, parse
from harness.errors import UserError
from harness.parsing.yaml_files import read_yaml
from harness.pictures import drawing, page
from harness.pictures.images import evenly, read_images
from harness.pictures.maps import Column, Maps, compute, counterpart, vit_column
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
        self.failed: set[str] = set()  # ids of runs that cannot be drawn
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
        finished = _finished(experiment, self.workspace)
        if not finished and _measured(experiment, self.workspace):
            self._tell(f"no maps of experiment {experiment.name}: its students are not in {self.workspace.students}")
        runs = [run for run in finished if run.id not in self.drawn and run.id not in self.failed]
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
        for mine in _by_teacher(runs[:room]):
            try:
                teacher = vit_column("teacher", "teacher", builder.teacher(mine[0].teacher), -1)
                of_teacher = compute(teacher, images, images, _MIDDLE)
            except (UserError, OSError) as error:
                self._lack(experiment, mine, error)
                continue
            for run in mine:
                try:
                    of_student = compute(_student(builder.workspace, run, teacher), images, images, _MIDDLE)
                except (UserError, OSError) as error:
                    self._lack(experiment, [run], error)
                    continue
                self.drawn[run.id] = list(_drawn(shown, [of_teacher, of_student]))

    def _lack(self, experiment: Experiment, runs: Sequence[Run], error: Exception) -> None:
        """These have no maps, and are not tried again at each look of --watch; the others have theirs."""
        self.failed.update(run.id for run in runs)
        titles = ", ".join(run.title for run in runs[:3]) + (f" and {len(runs) - 3} more" if len(runs) > 3 else "")
        self._tell(f"no maps of {titles} in experiment {experiment.name}: {error}")


def _finished(experiment: Experiment, workspace: Workspace) -> list[Run]:
    """Trained students of the first seed that has any."""
    everyone = student_runs(experiment)
    for seed in experiment.seeds:
        found = [run for run in everyone if run.info.seed == seed and workspace.is_trained(run)]
        if found:
            return found
    return []


def _measured(experiment: Experiment, workspace: Workspace) -> bool:
    """Whether there are records of its students."""
    recorded = {path.name.partition(".")[0] for path in workspace.records.glob("*.json")}
    return any(run.id in recorded for run in student_runs(experiment))


def _by_teacher(runs: Sequence[Run]) -> list[list[Run]]:
    """Each teacher is built once."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(repr(run.teacher), []).append(run)
    return list(found.values())


def _student(workspace: Workspace, run: Run, teacher: Column) -> Column:
    """A finished student at the block that corresponds to the teacher's."""
    folder = workspace.student(run.id)
    students.checked(folder)
    student = models.load_exported(folder, DEVICE)
    return vit_column(run.info.label, "student", student, counterpart(teacher.layer, student.depth, teacher.depth))


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

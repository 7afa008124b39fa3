"""Steps of trainings measured here and now, on noise: for estimates where no past training tells.

Nothing is read but the data's listing, nothing is kept, and no weights are loaded: they change no step's seconds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from harness.api import Batch, Calibration, Outputs, Vit
from harness.config import Experiment, TeacherSpec
from harness.environment import device_of, environment
from harness.errors import UserError
from harness.planning.past import Machine, Past, Step, Work, read_of
from harness.registry import load_plugin
from harness.runs import Group, Run, Workspace
from harness.seeds import content_hash, derive
from harness.specs import Fit, Training
from harness.training import train
from harness.training.builder import Builder
from harness.training.group_training import train_settings
from harness.twins import twin

HERE = "steps measured here and now"
WARM, TIMED = 2, 3  # steps; the first ones allocate, choose kernels, compile
CALIBRATION = 64  # images of noise


def measure(experiment: Experiment, workspace: Workspace, groups: Sequence[Group], past: Past) -> None:
    """Put the seconds of a step of every row in place of what past trainings tell; each row is measured once.

    Raises:
        UserError: the data or a teacher cannot be built here, or a group does not fit into the device's memory.
    """
    for plugin in experiment.plugins:
        load_plugin(plugin)
    device = device_of(experiment)
    machine = Machine.of(environment(device))
    builder = Builder(experiment, workspace, device, _never)
    past.steps.clear()
    known: set[Work] = set()
    for group in groups:
        works = [Work.of(run.spec) for run in group.runs]
        if not known.issuperset(works):
            known.update(works)
            Dry(builder, group).into(past, machine, works)
    past.images[content_hash(read_of(experiment.data))] = len(builder.source)


def _never(run: Run) -> None:
    raise AssertionError(f"{run.title} is not trained for a plan")


class Dry:
    """A few steps of one group."""

    def __init__(self, builder: Builder, group: Group) -> None:
        self.builder, self.device, self.runs = builder, builder.device, group.runs
        self.training = train_settings(group)

    def into(self, past: Past, machine: Machine, works: Sequence[Work]) -> None:
        """Add what each member's step takes, or why it cannot be told."""
        try:
            seconds, failures = self._seconds()
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"a group of {len(self.runs)} does not fit into the memory of {machine}; set runtime.max_group or "
                f"training.batch_size lower ({str(error).splitlines()[0]})"
            ) from None
        for run, work in zip(self.runs, works, strict=True):
            if run.id in failures:
                past.unmeasured[work] = failures[run.id]
            else:
                past.steps.append(Step(work, machine, seconds["teacher"], seconds[run.id], HERE))

    def _seconds(self) -> tuple[dict[str, float], dict[str, str]]:
        """Seconds of a step, of "teacher" and of each run; and why a run failed."""
        teacher = self._teacher(self.runs[0].teacher)
        with tempfile.TemporaryDirectory() as folder:
            members = [self.member(run, teacher, Path(folder)) for run in self.runs]
            steps = WARM + TIMED
            group = train.Group(members, teacher, self.training, steps, steps, self.device, log_steps=steps + 1)
            before: dict[str, float] = {}
            for step in range(steps):
                if step == WARM:
                    before = group.clock.totals()
                if group.alive:
                    group.train_step(self.batch(step))
        seconds = {name: (s - before.get(name, 0.0)) / TIMED for name, s in group.clock.totals().items()}
        return seconds, {m.id: str(m.failure["reason"]) for m in members if m.failure is not None}

    def _teacher(self, spec: TeacherSpec) -> Vit:
        """Of the same shape, its weights fresh, its repairs in place and knowing nothing."""
        bare = {"pretrained": False, "checkpoint": None, "fit": Fit(training=Training(steps=1))}
        return self.builder.untrained_teacher(twin(spec).model_copy(update=bare))

    def member(self, run: Run, teacher: Vit, folder: Path) -> train.Member:
        """A run's student and its method, which was shown noise."""
        student = self.builder.student(run)
        method = self.builder.method(run, student, teacher, calibrate=False)
        method.calibrate(_Noise(len(self.builder.source), self._images, teacher))
        return train.Member(run.id, run.info.seed, student, method, folder)

    def _images(self, count: int, number: int) -> Tensor:
        """[count, 3, H, W]"""
        draws = torch.Generator().manual_seed(derive("noise", number))
        size = self.builder.data.image_size
        return torch.rand(count, 3, size, size, generator=draws).to(self.device)

    def batch(self, step: int) -> Batch:
        """Of noise, on the device."""
        count = self.training.batch_size
        labels = torch.arange(count, device=self.device) % self.builder.num_classes
        index = torch.arange(count, device=self.device) % len(self.builder.source)
        return Batch(self._images(count, step), labels, index, progress=step / (WARM + TIMED))


class _Noise(Calibration):
    """Few images of noise in place of the training images."""

    def __init__(self, samples: int, images: Callable[[int, int], Tensor], teacher: Vit) -> None:
        self.samples, self.images, self.teacher = samples, images, teacher

    @torch.no_grad()
    def outputs(self, images: int, layers: Iterable[int], attention_layers: Iterable[int] = ()) -> Iterator[Outputs]:
        yield self.teacher(self.images(min(images, CALIBRATION), 0), tuple(layers), tuple(attention_layers))

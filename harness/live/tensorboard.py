"""TensorBoard: event files in `live/tensorboard`, a folder a run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import ClassVar

from harness.live.logger import Logger, Outcome, Shown


class TensorBoard(Logger):
    """What an earlier process wrote after the step at which a training goes on is taken back (`purge_step`)."""

    name: ClassVar[str] = "tensorboard"
    package: ClassVar[str] = "tensorboard"

    @classmethod
    def prepare(cls) -> None:
        importlib.import_module("torch.utils.tensorboard")

    def start(self, run: Shown) -> int:
        from torch.utils.tensorboard import SummaryWriter

        # A row may be called otherwise by now; its folder stays.
        folder = next(run.folder.glob(f"*.{run.id}"), run.folder / run.file_name)
        new = not folder.is_dir()
        # Files are read in the order of the seconds in their names: nothing is taken back that need not be.
        taken_back = None if new or run.step is None else run.step + 1
        self.writer = SummaryWriter(str(folder), purge_step=taken_back)
        if new:
            text = json.dumps(run.settings, indent=2, default=str)
            self.writer.add_text("settings", "\n".join(f"    {line}" for line in text.splitlines()))
        self.writer.flush()
        return run.step or 0

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # what is on disk survives a kill, as train.jsonl does

    def finish(self, outcome: Outcome) -> None:
        self.writer.close()

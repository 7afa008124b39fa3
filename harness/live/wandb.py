"""Weights & Biases, as its own settings and environment say (WANDB_MODE, WANDB_ENTITY, WANDB_PROJECT, ...)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from harness.errors import UserError
from harness.live.logger import Logger, Outcome, Remembered, Shown


class WandB(Logger):
    """A run of W&B for each run here, several at once in one process, with our step as the axis of every chart."""

    name: ClassVar[str] = "wandb"
    package: ClassVar[str] = "wandb"

    @classmethod
    def prepare(cls) -> None:
        wandb: Any = importlib.import_module("wandb")
        if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
            return
        try:
            known, reason = wandb.login(), "nobody is logged in"  # it asks on a terminal; later nobody could answer
        except Exception as error:
            known, reason = False, str(error)
        if not known:
            raise UserError(f"runtime.log: wandb cannot be used: {reason}; or set WANDB_MODE=offline")

    def start(self, run: Shown) -> int:
        wandb: Any = importlib.import_module("wandb")
        self.known = Remembered.of(run)
        self.known.keep(over=False)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.project,
            dir=str(run.folder.parent),  # it makes a folder "wandb" there
            id=self.known.name,
            name=run.title,
            config=dict(run.settings),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        return self.known.step

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.known.keep(step=max(step, self.known.step))
        self.run.log({"step": step, **values})

    def finish(self, outcome: Outcome) -> None:
        self.known.keep(over=outcome != "stopped")
        if outcome == "stopped":
            self.run.mark_preempting()
        self.run.finish(exit_code=0 if outcome == "finished" else 1)

"""MLflow, where MLFLOW_TRACKING_URI says."""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from harness.errors import UserError
from harness.live.logger import Logger, Outcome, Remembered, Shown, flat

STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
LONGEST = 500  # of a parameter's text, in the oldest servers


class MLflow(Logger):
    """A run of MLflow for each run here, by its client alone: no state of a process."""

    name: ClassVar[str] = "mlflow"
    package: ClassVar[str] = "mlflow"

    @classmethod
    def prepare(cls) -> None:
        mlflow: Any = importlib.import_module("mlflow")
        if not mlflow.is_tracking_uri_set():
            raise UserError(
                "runtime.log: mlflow is not told where to write; set MLFLOW_TRACKING_URI to a server, a database or "
                "file:DIR"
            )
        try:
            mlflow.MlflowClient()
        except Exception as error:
            raise UserError(f"runtime.log: mlflow cannot be used: {error}") from error

    def start(self, run: Shown) -> int:
        mlflow: Any = importlib.import_module("mlflow")
        self.metric = mlflow.entities.Metric
        self.client = mlflow.MlflowClient()
        self.known = Remembered.of(run)
        if self.known.new:
            made = self.client.create_run(self._experiment(run), run_name=run.title, tags={"run": run.id})
            params = [
                mlflow.entities.Param(_name(key), text[:LONGEST]) for key, text in flat(run.settings).items() if text
            ]
            self.client.log_batch(made.info.run_id, params=params[:100])
            self.known.keep(name=made.info.run_id)
        else:
            self.client.update_run(self.known.name, "RUNNING")
        self.known.keep(over=False)
        return self.known.step

    def _experiment(self, run: Shown) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project
        found = self.client.get_experiment_by_name(name)
        return self.client.create_experiment(name) if found is None else found.experiment_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.known.keep(step=max(step, self.known.step))
        now_ms = int(time.time() * 1000)
        self.client.log_batch(
            self.known.name, metrics=[self.metric(_name(key), value, now_ms, step) for key, value in values.items()]
        )

    def finish(self, outcome: Outcome) -> None:
        self.known.keep(over=outcome != "stopped")
        self.client.set_terminated(self.known.name, STATUS[outcome])


def _name(text: str) -> str:
    """As MLflow allows it: letters, digits and _-./ and spaces."""
    return re.sub(r"[^\w./ -]", "_", text)

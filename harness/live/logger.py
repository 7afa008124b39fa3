"""What shows a run: one small interface, and what is remembered of a run that is shown elsewhere. No torch."""

from __future__ import annotations

import abc
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

Outcome = Literal["finished", "failed", "stopped"]  # stopped: it goes on later


@dataclass(frozen=True)
class Shown:
    """One encoder, as others show it.

    Attributes:
        id: of the run. title: its row and seed. project: the experiment's name. settings: plain values that decide it.
        folder: where this logger may keep files, `live/NAME` of the workspace.
        step: the last one that its training has done so far; None where it is only measured.
    """

    id: str
    title: str
    project: str
    settings: Mapping[str, Any]
    folder: Path
    step: int | None

    @property
    def file_name(self) -> str:
        """Title and id, as a folder may be called."""
        plain = re.sub(r"[^\w.+=,@-]+", "-", self.title)[:80].strip("-.")
        return f"{plain}.{self.id}"


class Logger(abc.ABC):
    """Shows one run. All but `prepare` is called in a thread of its own: it may take its time, and it may fail."""

    name: ClassVar[str]
    package: ClassVar[str]  # whose absence means that it is not installed

    @classmethod
    @abc.abstractmethod
    def prepare(cls) -> None:
        """Import what it needs and see whether it can be used, before anything trains.

        Raises:
            ImportError: it is not installed. UserError: it cannot be used as it is set up here.
        """

    @abc.abstractmethod
    def start(self, run: Shown) -> int:
        """Begin to show a run, or go on; the last step that is shown already, and need not be given again."""

    @abc.abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step."""

    @abc.abstractmethod
    def finish(self, outcome: Outcome) -> None:
        """No more of it comes in this process."""


@dataclass
class Remembered:
    """A run under the name that it has elsewhere, with the last step that was sent there; a file in `live/`.

    A step is noted before it is sent, so that a kill may leave one out but sends none twice.
    """

    path: Path
    name: str
    step: int = 0
    over: bool = False  # its training has ended, or failed
    new: bool = field(default=True, repr=False)

    @classmethod
    def of(cls, run: Shown) -> Remembered:
        """As it was left; forgotten where a run is trained from its beginning after its training had ended."""
        path = run.folder / f"{run.id}.json"
        fresh = cls(path, f"{run.id}-{secrets.token_hex(3)}")
        try:
            found = cls(path, **json.loads(path.read_text(encoding="utf-8")), new=False)
        except (OSError, ValueError, TypeError):
            return fresh
        return fresh if found.over and run.step == 0 else found

    def keep(self, **changes: Any) -> None:
        """Note changes. Raises OSError."""
        for key, value in changes.items():
            setattr(self, key, value)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"name": self.name, "step": self.step, "over": self.over}), encoding="utf-8")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as text under names with dots.

    >>> flat({"method": "fitnet", "training": {"lr": 0.1}})
    {'method': 'fitnet', 'training.lr': '0.1'}
    """
    found: dict[str, str] = {}
    for key, value in settings.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": str(value)})
    return found

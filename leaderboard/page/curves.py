"""What a student's training logged, thinned out for a chart."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

MOST_POINTS, MOST_TERMS = 120, 12
_NAME = re.compile(r"[A-Za-z0-9_-]+")  # of a run that has a folder: never a path to somewhere else
_NO_TERMS = ("step", "epoch")


def curve(workspace: Path, run_id: str) -> dict[str, list[float | None]] | None:
    """Steps and values of the terms in `students/<run id>/train.jsonl`, or None where there is none to read.

    At most `MOST_POINTS` of the logged steps, at equal distances with the last one, and `MOST_TERMS` terms, the loss
    first. A term that a step lacks, or that is not finite there, is None. Lines that are cut short are left out.
    """
    if not _NAME.fullmatch(run_id):
        return None
    try:
        lines = (workspace / "students" / run_id / "train.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    steps = [step for step in map(_step, _thinned(lines)) if step is not None]
    if not steps:
        return None
    terms = dict.fromkeys(name for step in steps for name, value in step.items() if _is_number(value))
    names = sorted((name for name in terms if name not in _NO_TERMS), key=lambda name: name != "loss")
    return {name: [_rounded(step.get(name)) for step in steps] for name in ["step", *names[:MOST_TERMS]]}


def _thinned(lines: list[str]) -> list[str]:
    if len(lines) <= MOST_POINTS:
        return lines
    last = len(lines) - 1
    return [lines[i * last // (MOST_POINTS - 1)] for i in range(MOST_POINTS)]


def _step(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and _is_number(found.get("step")) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: object) -> float | None:
    if not isinstance(value, int | float) or not _is_number(value):
        return None
    try:
        return float(f"{value:.5g}") if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None

"""The contract checks on one method or task: named functions, the same for everybody's.

`singer-bench check NAME-OR-FILE` runs them, and the tests run them on everything in the catalogue.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.catalogue import Entry
from harness.checking import method_checks as _of_method
from harness.checking import method_run_checks as _of_running
from harness.checking import task_checks as _of_task
from harness.checking.specimen import Fault, MethodSpecimen, TaskSpecimen, streams
from harness.errors import UserError
from harness.registry import where_raised

Check = Callable[[Any], "str | None"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one check found. message: what to change where it failed; else empty, or what the method refuses."""

    check: str
    ok: bool
    message: str = ""


def method_checks() -> list[tuple[str, Check]]:
    """Name and function of every check on a method; the function takes its specimen."""
    return [(check.__name__, check) for check in (*_of_method.CHECKS, *_of_running.CHECKS)]


def task_checks() -> list[tuple[str, Check]]:
    """Name and function of every check on a task; the function takes its specimen."""
    return [(check.__name__, check) for check in _of_task.CHECKS]


def specimen(entry: Entry) -> MethodSpecimen | TaskSpecimen:
    """What the checks of an entry look at. Raises UserError for a source, which has no checks."""
    if entry.kind == "source":
        raise UserError(f"{entry.name!r} is a source; there are checks for methods and tasks")
    return MethodSpecimen(entry) if entry.kind == "method" else TaskSpecimen(entry)


def run_check(name: str, check: Check, of: MethodSpecimen | TaskSpecimen) -> Outcome:
    """One check. An exception in the user's code is told with the user's file and line."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(streams(0))
        stack.enter_context(warnings.catch_warnings())
        try:
            return Outcome(name, True, check(of) or "")
        except Fault as fault:
            return Outcome(name, False, str(fault))
        except UserError as error:
            return Outcome(name, False, str(error))
        except Exception as error:  # a stranger's code
            return Outcome(name, False, where_raised(error, Path(of.entry.path)))


def run_checks(entry: Entry) -> list[Outcome]:
    """Every check of a method or a task, in order."""
    checks = method_checks() if entry.kind == "method" else task_checks()
    of = specimen(entry)
    return [run_check(name, check, of) for name, check in checks]

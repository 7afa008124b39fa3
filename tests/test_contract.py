"""The contract checks on every method and task that the catalogue finds; no line of this file is about one of them."""

from __future__ import annotations

import functools

import pytest

from harness.catalogue import catalogue
from harness.checking.checks import MethodSpecimen, TaskSpecimen, method_checks, run_check, specimen, task_checks

KNOWN = catalogue()


@functools.cache
def shared(kind: str, name: str) -> MethodSpecimen | TaskSpecimen:
    """One specimen for all checks, so that its toys are fitted once."""
    return specimen(KNOWN.entry(kind, name))


@pytest.mark.parametrize(("check", "function"), method_checks(), ids=[name for name, _ in method_checks()])
@pytest.mark.parametrize("name", KNOWN.methods)
def test_method(name, check, function):
    outcome = run_check(check, function, shared("method", name))
    assert outcome.ok, outcome.message


@pytest.mark.parametrize(("check", "function"), task_checks(), ids=[name for name, _ in task_checks()])
@pytest.mark.parametrize("name", KNOWN.tasks)
def test_task(name, check, function):
    outcome = run_check(check, function, shared("task", name))
    assert outcome.ok, outcome.message

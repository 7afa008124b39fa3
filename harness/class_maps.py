"""How the classes of one split are found among those of another: a test set with some of the training classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.errors import UserError, unknown

HOWS = ("same", "index", "subset")


def class_map(train: Sequence[str], test: Sequence[str], how: str) -> np.ndarray:
    """The number among `train` of every class of `test`, [len(test)] int64.

    Args:
        how: "same" (the same names in the same order), "subset" (by name), or "index": a test class's name is a
            number, the place of its class in the order of `train`, from 0.

    Raises:
        UserError: a test class that `train` does not have, or two that mean one.
    """
    if how not in HOWS:
        raise UserError(unknown("way to map test classes", how, HOWS))
    if how == "same":
        if tuple(train) != tuple(test):
            raise UserError(
                f"train and test do not have the same classes: {_differences(train, test)}. Give splits with one list "
                "of classes in one order, or say `test_classes: subset` where test has some of them"
            )
        return np.arange(len(train))
    if how == "subset":
        numbers = {name: number for number, name in enumerate(train)}
        strange = [name for name in test if name not in numbers]
        if strange:
            raise UserError(
                f"{len(strange)} test classes are none of train's: {_few(strange)}. Train has {_few(train)}"
            )
        return np.array([numbers[name] for name in test], dtype=np.int64)
    strange = [name for name in test if not name.isdecimal() or int(name) >= len(train)]
    if strange:
        raise UserError(
            f"{len(strange)} test classes are no numbers from 0 to {len(train) - 1}, as `test_classes: index` needs "
            f"with {len(train)} training classes: {_few(strange)}"
        )
    found = np.array([int(name) for name in test], dtype=np.int64)
    if len(np.unique(found)) < len(found):
        raise UserError(f"two test classes mean one number, among {_few(test)}; write each number in one way")
    return found


def _differences(train: Sequence[str], test: Sequence[str]) -> str:
    only_train, only_test = ([n for n in a if n not in set(b)] for a, b in ((train, test), (test, train)))
    if not only_train and not only_test:
        return "they are in another order"
    parts = [f"only in {what}: {_few(names)}" for what, names in (("train", only_train), ("test", only_test)) if names]
    return f"{len(train)} against {len(test)}; {'; '.join(parts)}"


def _few(names: Sequence[str]) -> str:
    """The first three names; how many there are in all, where they are more."""
    shown = ", ".join(repr(n) for n in names[:3])
    return shown if len(names) <= 3 else f"{shown}, ... ({len(names)})"

"""mmsegmentation without a compiler: its data sets, transforms and metric, with `mmcv-lite` or with the full `mmcv`.

`mmcv-lite` is `mmcv` without its compiled operators. Four modules of mmsegmentation 1.2.2 import some of these without
a guard (utils/mask_classification, decode_heads/san_head, losses/focal_loss, models/utils/point_sample), so that
`import mmseg.datasets` fails, although nothing that this project uses ever calls one. While mmsegmentation is imported
here, an empty `mmcv._ext` stands in for the compiled module; it is gone again afterwards, so that whoever asks whether
operators are there gets the true answer. An operator that is called all the same raises and says what to install.
Where the full `mmcv` is installed nothing is put in its place.

The import takes seconds, so nobody imports mmsegmentation at the top of a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

from harness.errors import UserError

COMPILED = "mmcv._ext"
WHOLE = ("mmseg.datasets", "mmseg.evaluation")  # imported at once: what imports operators is only imported once
REMEDY = "install this project's requirements.lock, or mmsegmentation 1.2 with mmcv-lite 2.1, ftfy and regex"
_ONE_AT_A_TIME = threading.Lock()


class _NoOperators(types.ModuleType):
    """Has every operator that mmcv asks for; calling one raises."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):  # what the import system asks of any module
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> Any:
            raise RuntimeError(f"mmcv's operator {name!r} is not compiled: mmcv-lite has none; install the full mmcv")

        return missing


def mmseg(module: str) -> Any:
    """A module of mmsegmentation or mmcv by its full name, such as "mmseg.datasets" or "mmcv.transforms".

    Raises:
        UserError: they are not installed, or of versions that do not fit.
    """
    with _ONE_AT_A_TIME:
        try:
            if any(name not in sys.modules for name in WHOLE):
                _import_whole()
            return importlib.import_module(module)
        except (ImportError, AssertionError) as error:  # mmseg asserts the version of mmcv
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"mmsegmentation cannot be imported ({reason}); {REMEDY}") from error


def operators_compiled() -> bool:
    """Whether mmcv's compiled operators are installed."""
    return importlib.util.find_spec("mmcv") is not None and importlib.util.find_spec(COMPILED) is not None


def _import_whole() -> None:
    stand_in = None if operators_compiled() else _NoOperators(COMPILED)
    if stand_in is not None:
        sys.modules[COMPILED] = stand_in
    try:
        for name in WHOLE:
            importlib.import_module(name)
    finally:
        if stand_in is not None and sys.modules.get(COMPILED) is stand_in:
            del sys.modules[COMPILED]

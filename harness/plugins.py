"""A user's file as a module: `harness.plugins.<stem>_<path in hex>`, importable by that name in any process.

A DataLoader's worker or a submitted job that unpickles an object of a plugin imports its module by name; the
name holds the path, and importing this package (which the name begins with) installs what reads it.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__path__: list[str] = []  # makes this module a package, so that plugins can be modules in it


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        head, _, name = fullname.rpartition(".")
        if head != __name__:
            return None
        try:
            file = Path(bytes.fromhex(name.rpartition("_")[2]).decode())
        except ValueError:
            return None
        return importlib.util.spec_from_file_location(fullname, file) if file.is_file() else None


def module_name(path: Path) -> str:
    """The one name under which a file is imported."""
    stem = re.sub(r"\W", "_", path.stem)
    return f"{__name__}.{stem}_{str(path.resolve()).encode().hex()}"


def import_file(path: Path) -> ModuleType:
    """Import a file once. Raises whatever it raises."""
    return importlib.import_module(module_name(path))


sys.meta_path.append(_Finder())

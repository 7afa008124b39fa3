"""Imports point down, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("harness", "singer", "baselines", "tasks", "leaderboard")
FOUND_BY_WALKING = ("singer", "baselines", "tasks")
FOR_METHODS_AND_TASKS = frozenset(
    f"harness.{name}"
    for name in (
        "api",
        "matching",
        "norms",
        "standardise",
        "models",
        "features",
        "probes",
        "logistic",
        "head_choice",
        "class_maps",
        "dense",
        "segmenting",
        "crops",
        "mmseg_guard",
        "reference",
        "similarity",
        "data",
        "sources",
        "errors",
        "items",
        "seeds",
        "toys",
    )
)
FOR_THE_LEADERBOARD = frozenset(f"harness.{name}" for name in ("records", "errors", "seeds", "items", "storage.items"))
MAY_SHOW_A_TABLE = (
    "harness/results.py",
    *(f"harness/cli/{name}.py" for name in ("table", "compare", "publish", "models", "page")),
)
LIGHT = ("records", "errors", "seeds", "config", "runs", "catalogue", "registry", "plugins")
LIGHT += ("parsing.annotations", "parsing.syntax", "cli.main")
LIGHT += ("dispatch.submit", "dispatch.waiting", "dispatch.work", "dispatch.queue", "dispatch.again")
LIGHT += ("planning.plans", "monitoring.status_text", "monitoring.watching")
HEAVY = ("torch", "torchvision", "timm", "mmengine")


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, at_once: bool = False) -> set[str]:
    """Modules that a file imports; `at_once`: only those that importing the file itself imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = _at_once(tree.body) if at_once else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            # `from harness import models` imports harness.models
            found.update(
                f"{node.module}.{alias.name}" if node.module in OURS else str(node.module) for alias in node.names
            )
    return found


def _at_once(body: list[ast.stmt]) -> list[ast.AST]:
    """Statements outside functions and outside `if TYPE_CHECKING`."""
    found: list[ast.AST] = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found.append(node)
        for part in ("body", "orelse", "handlers", "finalbody"):
            found += _at_once(getattr(node, part, []))
    return found


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in OURS}


@pytest.mark.parametrize("package", FOUND_BY_WALKING)
def test_methods_and_tasks_import_the_contracts_and_never_each_other(package):
    assert files(package)
    for path in files(package):
        others = {name for name in ours(imports(path)) if name.split(".")[0] != package}
        assert others <= FOR_METHODS_AND_TASKS, f"{path.relative_to(ROOT)}: {sorted(others - FOR_METHODS_AND_TASKS)}"


def test_a_baseline_imports_no_other_baseline():
    for path in files("baselines"):
        assert not {name for name in imports(path) if name.startswith("baselines")}, path.name


def test_the_leaderboard_imports_records_and_no_torch():
    for path in files("leaderboard"):
        others = {name for name in ours(imports(path)) if not name.startswith("leaderboard")}
        assert others <= FOR_THE_LEADERBOARD, f"{path.name}: {sorted(others)}"
        assert not {name for name in imports(path) if name.split(".")[0] in HEAVY}, path.name


def test_the_harness_finds_methods_and_tasks_by_walking_only():
    for path in files("harness"):
        names = imports(path)
        assert not {name for name in names if name.split(".")[0] in FOUND_BY_WALKING}, path.name
        table = {name for name in names if name.split(".")[0] == "leaderboard"}
        assert not table or str(path.relative_to(ROOT)) in MAY_SHOW_A_TABLE, f"{path.name}: {sorted(table)}"
        assert not {name for name in imports(path, at_once=True) if name.startswith("leaderboard")}, path.name


def test_the_contracts_import_torch_and_the_standard_library_only():
    strange = {
        name
        for name in imports(ROOT / "harness/api.py")
        if name.split(".")[0] not in {"torch", *sys.stdlib_module_names}
    }
    assert not strange


@pytest.mark.parametrize("name", LIGHT)
def test_what_lists_and_plans_never_imports_torch(name):
    seen, waiting = set(), [f"harness.{name}"]
    while waiting:
        module = waiting.pop()
        path = ROOT / (module.replace(".", "/") + ".py")
        if module in seen or not path.is_file():
            continue
        seen.add(module)
        found = imports(path, at_once=True)
        heavy = sorted(n for n in found if n.split(".")[0] in HEAVY)
        assert not heavy, f"{module}, which harness.{name} imports, imports {heavy}"
        waiting += ours(found)
    assert f"harness.{name}" in seen


def test_no_torch_is_there_once_a_configuration_can_be_read_and_planned():
    code = (
        "import sys\n"
        + "".join(f"import harness.{name}\n" for name in LIGHT)
        + "import leaderboard.render, harness.cli.main\n"
        + "harness.catalogue.catalogue().resolve('method', 'fitnet', {'weight': 1})\n"
        + f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr

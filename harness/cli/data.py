"""`singer-bench data`: are data there and whole, and conversion of what is published in a form that cannot be read."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.errors import UserError, unknown

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Check data, or convert them.")
PREPARED = ("nyuv2",)
DEPTHS = ("rawDepths", "depths")


@app.command("list")
def list_() -> None:
    """Data sets that a configuration can name as a suite."""
    from tabulate import tabulate

    from harness.datasets.suites import parse_suite, read_suite, shipped_suites

    suites = {name: parse_suite(read_suite(name), name) for name in shipped_suites()}
    rows = [[name, one.task, one.about.title, one.about.where] for name, one in suites.items()]
    print(tabulate(rows, ["suite", "task", "data", "where to get them"], disable_numparse=True))


@app.command()
def check(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A suite, as `data list` names it, or a file of one.")],
    root: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the data.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting of it; may be repeated.")
    ] = None,
) -> None:
    """Whether the data of a task are there and as published."""
    from harness.datasets.suites import parse_suite, read_suite
    from harness.parsing.yaml_files import change

    raw = read_suite(task)
    for setting in settings or ():
        try:
            change(raw, setting, {})
        except ValueError as error:
            raise UserError(f"--set {error}") from None
    raw["data"] = {**raw["data"], "root": str(root)} if isinstance(raw["data"], dict) else raw["data"]
    suite = parse_suite(raw, task)
    if not root.is_dir():
        raise UserError(f"no folder {str(root)!r}; make it and put there:\n  " + "\n  ".join(suite.about.layout))
    from harness.datasets.check import check_data

    report = check_data(suite)
    print("\n".join([f"{suite.about.title} in {root}", *report.good]), flush=True)
    if report.faults:
        faults = "\n".join(f"  - {fault}" for fault in report.faults)
        raise UserError(f"the data of {task} are not ready:\n{faults}\n{report.where()}")
    changed = f", with {', '.join(settings)}" if settings else ""
    print(f"ready{changed}: tasks: [{{suite: {task}, root: {root}}}]")


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What is converted: nyuv2.")],
    mat: Annotated[Path, typer.Option(metavar="FILE", help="nyu_depth_v2_labeled.mat, or a file with both splits.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to make.")],
    splits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="splits.mat, or a text file of training image numbers.")
    ] = None,
    depths: Annotated[
        str, typer.Option(help="rawDepths, the sensor's, or depths, with its holes filled.")
    ] = "rawDepths",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")] = False,
) -> None:
    """Published files into a form that a data source reads."""
    if name not in PREPARED:
        raise UserError(unknown("conversion", name, PREPARED))
    if depths not in DEPTHS:
        raise UserError(unknown("kind of depths", depths, DEPTHS))
    from harness.datasets.nyuv2 import prepare_nyuv2
    from harness.progress import Console

    progress = _Progress(Console(quiet))
    try:
        count = prepare_nyuv2(output, mat, splits, depths=depths, progress=progress)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(f"cannot write {str(output)!r}: {error.strerror or error}") from error
    finally:
        progress.stack.close()
    said = f"root: {output}, options: {{scale: 0.001, max_m: 10}}"
    print(f"{output}: {count} images with depth; data: {{source: depth_folder, {said}}}")


class _Progress:
    """A bar that begins with the first call, since only then it is known how much there is to do."""

    def __init__(self, console: Any) -> None:
        self.console, self.stack, self.bar = console, contextlib.ExitStack(), None

    def __call__(self, done: int, total: int) -> None:
        if self.bar is None:
            self.bar = self.stack.enter_context(self.console.bar("converting", total))
        self.bar.update(done)

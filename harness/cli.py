"""The command line. Heavy things are imported by the command that needs them, so that help and lists are quick."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from harness import cli_data, cli_protocols
from harness.errors import UserError, unknown

app = typer.Typer(
    name="singer-bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_protocols.app, name="protocols")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="An experiment in YAML.", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting; may be repeated.")
]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", metavar="FILE", help="A file with methods or tasks; may be repeated.")
]
WorkspaceOption = Annotated[
    Path | None,
    typer.Option(
        "--workspace", metavar="DIR", help="Where results are kept. Default: workspace/NAME of the experiment."
    ),
]
WorkspaceArgument = Annotated[
    Path, typer.Argument(metavar="WORKSPACE", help="A folder of results.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, only the result.")]


def main() -> None:
    """Entry point: a user's mistake is one message and exit code 2."""
    try:
        code = app(standalone_mode=False, prog_name="singer-bench")
        sys.stdout.flush()
        if isinstance(code, int) and code:  # click gives typer.Exit's code back instead of raising it
            raise SystemExit(code)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except typer.Exit as done:
        raise SystemExit(done.exit_code) from None
    except typer.Abort:
        raise SystemExit(130) from None
    except SystemExit as done:  # click itself makes 1 of a broken pipe
        raise SystemExit(0 if isinstance(done.__context__, BrokenPipeError) else done.code) from None
    except BrokenPipeError:
        # `singer-bench list methods | head` is no mistake; nor may Python complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except Exception as error:
        show = getattr(error, "show", None)  # typer's own: a wrong option or argument
        if show is None:
            raise
        show()
        raise SystemExit(2) from None


def _version(asked: bool) -> None:
    if asked:
        from harness import __version__

        print(f"singer-bench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Compare methods of distilling a large Vision Transformer into a small one."""


def _experiment(config: Path, settings: list[str] | None, plugins: list[Path] | None):
    from harness.config import load

    return load(config, settings or (), [str(p) for p in plugins or ()])


def _workspace(experiment: Any, given: Path | None):
    from harness.runs import Workspace

    return Workspace(given or Path("workspace") / experiment.name)


@app.command()
def run(
    config: Config,
    settings: Settings = None,
    workspace: WorkspaceOption = None,
    plugin: Plugins = None,
    retry_failed: Annotated[bool, typer.Option(help="Train failed runs again.")] = False,
    cache_gb: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Limit of features on disk; what was used longest ago goes first."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train and evaluate what is pending, here."""
    if cache_gb is not None:
        settings = [*(settings or ()), f"runtime.cache_gb={cache_gb}"]
    experiment = _experiment(config, settings, plugin)
    _run(experiment, _workspace(experiment, workspace), retry_failed, quiet)


def _run(experiment: Any, workspace: Any, retry_failed: bool, quiet: bool) -> None:
    from harness.progress import Console
    from harness.results import leaderboard, remember
    from harness.runs import fit_runs, pending, student_runs

    console = Console(quiet)
    runs = student_runs(experiment)
    remember(experiment, workspace)
    if retry_failed:
        for one in fit_runs(experiment) + runs:
            (workspace.failures / f"{one.id}.json").unlink(missing_ok=True)
    if pending(experiment, workspace):
        from harness.job import Interrupted, Job

        try:
            outcome = Job(experiment, workspace, console).run()
        except Interrupted as signal:
            console.say(f"stopped by {signal}; everything is saved, the same command goes on")
            raise typer.Exit(130) from None
        console.say(f"students trained: {len(outcome.trained)}; evaluations: {outcome.evaluated}")
    else:
        console.say("nothing is pending")
    print(leaderboard(experiment, workspace), end="", flush=True)
    failed = {one.title: why for one in runs if (why := workspace.failure(one.id)) is not None}
    for title, why in failed.items():
        print(f"failed: {title} at step {why['step']}: {why['reason']}", file=sys.stderr)
    if failed:
        print("the same command with --retry-failed trains failed ones again", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def demo(workspace: WorkspaceOption = None, settings: Settings = None, quiet: Quiet = False) -> None:
    """The whole job on embedded data, in minutes."""
    from harness.results import shipped

    experiment = _experiment(shipped("demo.yaml"), settings, None)
    _run(experiment, _workspace(experiment, workspace), False, quiet)


@app.command()
def tune(
    config: Config,
    trials: Annotated[int, typer.Option(metavar="N", help="Settings a method; the first is its own.")],
    seed: Annotated[int, typer.Option(help="Of the settings.")] = 0,
    sampler: Annotated[str, typer.Option(help="sobol or random.")] = "sobol",
    halving: Annotated[
        int | None,
        typer.Option(metavar="ETA", help="Short trainings first; the best 1/ETA go on to longer ones."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="TASK.METRIC", help="What decides. Default: the first task's first ranked.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="A,B", help="Of the trainings. Default: the experiment's first.")
    ] = None,
    settings: Settings = None,
    plugin: Plugins = None,
    workspace: WorkspaceOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: tuned.yaml in the workspace.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Choose hyperparameters with equal budgets, on held-out images."""
    experiment = _experiment(config, settings, plugin)
    from harness.interrupts import Interrupted
    from harness.progress import Console
    from harness.tune import Plan
    from harness.tune import tune as tuned
    from harness.tuned import not_itself, without_result, write_tuned
    from harness.tuned import table as described

    if seeds is not None and not all(part.strip().isdecimal() for part in seeds.split(",")):
        raise UserError(f"--seeds is {seeds!r}; give whole numbers with commas between, such as 0,1")
    chosen = None if seeds is None else tuple(dict.fromkeys(int(part) for part in seeds.split(",")))
    console, place = Console(quiet), _workspace(experiment, workspace)
    file = not_itself(output or place.root / "tuned.yaml", config)
    try:
        found = tuned(experiment, place, Plan(trials, seed, sampler, halving, metric, chosen), console)
    except Interrupted as signal:
        console.say(f"stopped by {signal}; everything is saved, the same command goes on")
        raise typer.Exit(130) from None
    write_tuned(found, config, settings or (), [str(p) for p in plugin or ()], file)
    print(f"{described(found)}\n\n{file}: `singer-bench run {shlex.quote(str(file))}` trains and tests what was chosen")
    if failed := without_result(found):
        print(f"every trial failed of {', '.join(failed)}: they stay as they were", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def plan(config: Config, settings: Settings = None, workspace: WorkspaceOption = None, plugin: Plugins = None) -> None:
    """What would run, in which groups; what is done."""
    from harness.results import plan as described

    experiment = _experiment(config, settings, plugin)
    print(described(experiment, _workspace(experiment, workspace)))


@app.command()
def status(workspace: WorkspaceArgument) -> None:
    """What is done, running, pending; what failed, why."""
    from harness.results import status as described
    from harness.runs import Workspace

    if not workspace.is_dir():
        raise UserError(f"no workspace {str(workspace)!r}; `singer-bench run CONFIG` makes one")
    print(described(Workspace(workspace)))


@app.command()
def table(
    workspace: WorkspaceArgument,
    format: Annotated[str, typer.Option(help="markdown, latex, csv, json or plain.")] = "markdown",
    metrics: Annotated[str, typer.Option(help="primary, all, or names with commas between.")] = "primary",
    costs: Annotated[bool, typer.Option(help="Time, memory and parameters too.")] = True,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="A file instead of the screen.")
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the first metric as bars: a .png, .svg or .pdf.")
    ] = None,
    gap: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="LOW HIGH", help="Two rows: how much of the gap between them every row recovers."),
    ] = None,
) -> None:
    """The leaderboard of a workspace."""
    from harness.records import write_atomic
    from leaderboard.render import FORMATS, render
    from leaderboard.write import load

    if format not in FORMATS:
        raise UserError(unknown("table format", format, FORMATS))
    if not workspace.is_dir():
        raise UserError(f"no workspace {str(workspace)!r}; `singer-bench run CONFIG` makes one")
    chosen: Any = metrics if metrics in ("primary", "all") else [m.strip() for m in metrics.split(",")]
    board = load(workspace, metrics=chosen, costs=costs, gap=gap)
    if chart is not None:
        from leaderboard.chart import chart as draw

        print(draw(board, chart))
        return
    text = render(board, format)
    if output is None:
        print(text, end="")
        return
    try:
        write_atomic(output, text)
    except OSError as error:
        raise UserError(f"cannot write {str(output)!r}: {error.strerror}") from error


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="methods, tasks or sources.")],
    verbose: Annotated[bool, typer.Option(help="Hyperparameters with their defaults too.")] = False,
    plugin: Plugins = None,
) -> None:
    """What can be named in a configuration."""
    from harness.results import listing

    # Where it is no terminal, such as in a pipe, the width is 120, unless COLUMNS says otherwise.
    print(listing(kind, verbose, [str(p) for p in plugin or ()], shutil.get_terminal_size((120, 24)).columns))


@app.command()
def check(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A registered method or task, or a file of your own.")
    ],
    plugin: Plugins = None,
) -> None:
    """The contract tests on a method, task or file."""
    from harness.results import check as checked

    lines, good = checked(name, [str(p) for p in plugin or ()])
    print("\n".join(lines))
    if not good:
        raise typer.Exit(1)


@app.command()
def diagnose(
    where: Annotated[
        Path,
        typer.Argument(
            metavar="WORKSPACE|CONFIG",
            help="A folder of results: its finished runs. A configuration: its methods as initialised.",
            show_default=False,
        ),
    ],
    run: Annotated[str | None, typer.Option(metavar="LABEL", help="Only this row, run title or run id.")] = None,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Training images that are looked at.")] = 64,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="All numbers into a file, too.")
    ] = None,
    settings: Settings = None,
    workspace: WorkspaceOption = None,
    plugin: Plugins = None,
) -> None:
    """What methods do to real images, as they tell it."""
    if where.is_dir() and (settings or workspace or plugin):
        raise UserError(
            "--set, --workspace and --plugin belong to a configuration; a folder of results knows its own. Leave them "
            "out, or name a configuration"
        )
    import json

    from harness.diagnosis import of_experiment, of_workspace, shown
    from harness.records import write_atomic
    from harness.runs import Workspace

    if where.is_dir():
        found = of_workspace(Workspace(where), run, images)
    else:
        experiment = _experiment(where, settings, plugin)
        found = of_experiment(experiment, _workspace(experiment, workspace), run, images)
    print(shown(found))
    if json_file is not None:
        try:
            write_atomic(json_file, json.dumps([one.plain() for one in found], indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {str(json_file)!r}: {error.strerror}") from error


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="STUDENT", help="WORKSPACE/students/ID, or the folder of any student.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to make.")],
) -> None:
    """A student as a folder that timm loads."""
    from harness.results import export as exported

    print(exported(Path(run), output))


@app.command()
def figures(
    workspace: Annotated[
        Path | None, typer.Argument(metavar="[WORKSPACE]", help="A folder of results; or else --model.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Where pictures go. Default: WORKSPACE/figures, or figures."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Pictures to look at. Default: test images of the experiment's data."),
    ] = None,
    count: Annotated[int, typer.Option(help="How many images are shown, at equal distances.")] = 4,
    methods: Annotated[
        str | None, typer.Option(metavar="A,B", help="Labels of rows, with commas between. Default: all.")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(metavar="NAME", help="Which of several experiments in the workspace.")
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="The teacher's block, from 0; students' in proportion. Default: the last.")
    ] = None,
    mark: Annotated[
        str | None, typer.Option(metavar="ROW,COLUMN", help="The patch that similarity is to. Default: the middle.")
    ] = None,
    format: Annotated[str, typer.Option(metavar="A,B", help="png, svg, pdf, with commas between.")] = "png,svg",
    hide_images: Annotated[
        bool, typer.Option("--hide-images", help="Maps alone, for images that may not be published.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="One model alone: a timm name, or local-dir:FOLDER.")
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(metavar="FILE", help="Its weights. Default: from the hub.")] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels of its images. Default: 224, or an exported model's own.")
    ] = None,
    repair: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[={A: B}]", help="A column with the model repaired, as in a config's teacher; may be repeated."
        ),
    ] = None,
) -> None:
    """Pictures of artifacts and of what methods do to them."""
    if (workspace is None) == (model is None):
        raise UserError(
            "name either a WORKSPACE or a --model; " + ("neither is given" if model is None else "not both")
        )
    from harness.figures import Wanted, model_figures, parts, place, workspace_figures

    wanted = Wanted(
        images=images,
        count=count,
        layer=layer,
        mark=None if mark is None else place(mark),
        methods=None if methods is None else parts(methods),
        formats=parts(format),
        hide_images=hide_images,
    )
    if workspace is not None:
        alone = {"--checkpoint": checkpoint, "--size": size, "--repair": repair}
        if given := [name for name, value in alone.items() if value]:
            raise UserError(f"{', '.join(given)} is for a --model alone; a workspace's teacher is its experiment's")
        from harness.runs import Workspace

        made = workspace_figures(Workspace(workspace), output or workspace / "figures", wanted, experiment)
    else:
        if experiment is not None:
            raise UserError("--experiment chooses one of a workspace's; a --model alone has none")
        plain = {"model": model, "checkpoint": checkpoint}
        made = model_figures(plain, repair or [], output or Path("figures"), wanted, size)
    print("\n".join(str(path) for path in made))


if __name__ == "__main__":
    main()

"""Commands that look into trained models: diagnose, export, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import Plugins, Settings, WorkspaceOption, read_experiment, workspace_of
from harness.errors import UserError


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
        experiment = read_experiment(where, settings, plugin)
        found = of_experiment(experiment, workspace_of(experiment, workspace), run, images)
    print(shown(found))
    if json_file is not None:
        try:
            write_atomic(json_file, json.dumps([one.plain() for one in found], indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {str(json_file)!r}: {error.strerror}") from error


def export(
    run: Annotated[str, typer.Argument(metavar="STUDENT", help="WORKSPACE/students/ID, or the folder of any student.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to make.")],
) -> None:
    """A student as a folder that timm loads, with a model card."""
    from harness.results import export as exported

    print(exported(Path(run), output))
    if (Path(run) / "run.yaml").is_file():  # a folder of another origin says nothing that a card could tell
        _write_card(Path(run), output)


def _write_card(student: Path, output: Path) -> None:
    """README.md beside an exported student, with the results of the workspace in which it lies."""
    from harness import students
    from harness.catalogue import catalogue
    from harness.records import Cost, Record, RunInfo, write_atomic
    from leaderboard.publishing.card import model_card
    from leaderboard.publishing.contents import read_one

    said = students.described(student)
    run = RunInfo.model_validate(said["info"])
    records = []
    for path in sorted((student.resolve().parent.parent / "records").glob(f"{run.id}.*.json")):
        found = read_one(path)
        if isinstance(found, Record):
            records.append(found)
        elif found is not None:
            print(f"note: not in the model card: {path}: {found.reason}")
    entry = catalogue().methods.get(run.method)  # None for a plugin's
    text = model_card(
        run,
        Cost.model_validate(said.get("cost", {})),
        records,
        name=output.resolve().name,
        head_trained=bool(said.get("head_trained")),
        cite=entry.cite if entry else "",
        does=entry.summary if entry else "",
        versions=said.get("environment", {}).get("packages"),
    )
    try:
        write_atomic(output / "README.md", text)
    except OSError as error:
        raise UserError(f"cannot write into {str(output)!r}: {error.strerror}") from error


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
    from harness.pictures.figures import Wanted, model_figures, parts, place, workspace_figures

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

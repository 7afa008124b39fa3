"""The command that serves this machine's queue."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from harness.cli.options import Quiet, WorkspaceArgument, existing


def queue(
    workspace: WorkspaceArgument,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Which GPUs, by nvidia-smi's numbers; '' for none. Default: all that CUDA may see."
        ),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(metavar="N", help="Jobs at once without a GPU. Default: as many as the cores allow."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Do here what was submitted to this machine."""
    from harness.progress import Console

    serve(existing(workspace), Console(quiet), wait=True, gpus=gpus, slots=slots)


def serve(workspace: Any, console: Any, **how: Any) -> None:
    """`harness.dispatch.queue.serve`; a signal that asked to stop is exit code 130."""
    from harness.dispatch import queue
    from harness.interrupts import Interrupted

    try:
        queue.serve(workspace, console, **how)
    except Interrupted as signal:
        console.say(f"stopped by {signal}; what is queued stays queued, and the same command goes on")
        raise typer.Exit(130) from None

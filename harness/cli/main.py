"""The command line: its commands in the order of its help, its exit codes.

Heavy things are imported by the command that needs them, so that help and lists are quick.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from harness.cli import compare as cli_compare
from harness.cli import data as cli_data
from harness.cli import dispatch as cli_dispatch
from harness.cli import models as cli_models
from harness.cli import page as cli_page
from harness.cli import protocols as cli_protocols
from harness.cli import publish as cli_publish
from harness.cli import queue as cli_queue
from harness.cli import run as cli_run
from harness.cli import show as cli_show
from harness.cli import status as cli_status
from harness.cli import table as cli_table
from harness.errors import UserError

app = typer.Typer(
    name="singer-bench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    cli_run.run,
    cli_run.demo,
    cli_dispatch.submit,
    cli_queue.queue,
    cli_run.tune,
    cli_status.plan,
    cli_status.status,
    cli_status.retry,
    cli_status.cancel,
    cli_table.table,
    cli_page.page,
    cli_compare.compare,
):
    app.command()(command)
for command in (cli_publish.publish, cli_publish.verify, cli_publish.merge, cli_publish.schema):
    app.command()(command)
app.command("list")(cli_show.list_)
for command in (cli_show.check, cli_models.diagnose, cli_models.export, cli_models.figures):
    app.command()(command)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_protocols.app, name="protocols")


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

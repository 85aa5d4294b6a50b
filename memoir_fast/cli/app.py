"""The command `memoir`.

Each module of `memoir_fast.cli.commands` is one command: it holds a function of its own name. They
import torch and transformers only when they run.

Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 3 some edit was not learned, or is
lost, 130 interrupted.
"""

import errno
import functools
import importlib
import io
import os
import pkgutil
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from memoir_fast import __version__
from memoir_fast.cli import commands
from memoir_fast.cli.plain import plain, warn_plainly
from memoir_fast.errors import MemoirError

EXPLAINED, INTERRUPTED = 1, 130

app = typer.Typer(
    name="memoir",
    help="Thousands of corrections to a language model, one after another, without retraining it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"memoir_fast {__version__}")
        raise typer.Exit


def _explained(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, whose errors about input, files and state end in one line instead of a traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("memoir: interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except (MemoirError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of our output is gone
            if os.environ.get("MEMOIR_FAST_TRACEBACK") == "1":
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            typer.echo(f"memoir: {plain(message)}", err=True)
            raise typer.Exit(EXPLAINED) from None

    return run


def _register() -> None:
    for found in sorted(pkgutil.iter_modules(commands.__path__), key=lambda module: module.name):
        module = importlib.import_module(f"{commands.__name__}.{found.name}")
        app.command(found.name)(_explained(getattr(module, found.name)))


_register()


def main() -> None:
    """Runs the command line on `sys.argv` and exits."""
    warn_plainly()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no edit is one that a terminal of few letters cannot show
    app(prog_name="memoir" if os.path.basename(sys.argv[0]) != "__main__.py" else "python -m memoir_fast")

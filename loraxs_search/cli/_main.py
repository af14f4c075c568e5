"""The app, its verbs, and how errors leave it."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

from loraxs_search import __version__
from loraxs_search.cli import check, history, launch, predict, promote, pull, resume, spaces, status, ui
from loraxs_search.errors import LoraxsError

app = typer.Typer(
    name="loraxs-search",
    help="Find, keep and hand out tiny adapters: LoRA-XS search on Ray Tune, Optuna and MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for verb in (check, launch, status, resume, promote, history, pull, predict, ui):
    app.command(name=verb.__name__.rpartition(".")[2])(verb.command)
app.add_typer(spaces.app, name="spaces")


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
) -> None:
    assert not traceback  # taken from the arguments by `main`, listed here for the help
    if version:
        print(__version__)
        raise Exit(0)


def main() -> None:
    """Run the command line; exit 0 ok, 1 failed, 2 usage."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if "--traceback" in sys.argv:
        sys.argv.remove("--traceback")
        app(standalone_mode=False)
        return
    sys.exit(_run())


def _run() -> int:
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except LoraxsError as error:
        return _fail(error.message, error.hint, error.exit_code)
    except TyperException as error:
        return _fail(error.format_message(), "see `loraxs-search --help`", error.exit_code)
    except (Abort, KeyboardInterrupt):
        return _fail("interrupted", None, 130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  # the last stop: people get a sentence, --traceback the rest
        return _fail(f"{type(error).__name__}: {error}", "run again with --traceback and report this", 1)


def _fail(message: str, hint: str | None, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"\nhint: {hint}", file=sys.stderr)
    return code

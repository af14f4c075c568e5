"""The app, its verbs, and how errors leave it."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from gc import set_threshold
from typing import Any, NoReturn, TextIO, cast

import typer
from typer import Option
from typer.core import TyperGroup
from typer.exceptions import Abort, Exit, TyperException

from loraxs_search import __version__
from loraxs_search.cli import check, init, launch, predict, registry, report, serve, studies
from loraxs_search.cli._out import PlainText, plain, tell
from loraxs_search.errors import LoraxsError, UsageError, shortened, unknown_name
from loraxs_search.mlflow_uri import redact
from loraxs_search.records.codec import to_json

_LAWS = {
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}
_CHOICES = re.compile(r"is not one of (.*)\.?$")


def _bad_value(error: Any) -> str | None:
    """Return what a value must be, and what it is; None if that is not known.

    Args:
        error: What Typer raises of a parameter.
    """
    parameter, details = getattr(error, "param", None), getattr(error.__cause__, "errors", None)
    if parameter is None or details is None:
        return None
    name = next((option for option in parameter.opts if option.startswith("--")), parameter.name)
    detail = details()[0]
    if detail["type"] in _LAWS:
        law = _LAWS[detail["type"]].format(**detail.get("ctx", {}))
        return f"`{name}` must be {law}, but got {shortened(detail['input'])}."
    choices = _CHOICES.search(detail["msg"])
    return unknown_name(name, detail["input"], re.findall(r"'([^']*)'", choices[1])) if choices else None


PROGRAM = "loraxs-search"
INTERRUPTED = 130  # 128 + SIGINT, what shells expect
_TRACEBACK = "--traceback"
_JSON = "--json"
_OBJECTS_BETWEEN_COLLECTIONS = 200_000  # with 700, as is usual, a fifth of importing transformers is collection
_HELP = "Find, keep and hand out tiny adapters: LoRA-XS search on Ray Tune, Optuna and MLflow."


class _Verbs(TyperGroup):
    """A group that answers an unknown verb with the nearest known one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise UsageError(unknown_name("command", args[0], self.commands), hint=f"see `{ctx.command_path} --help`")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name=PROGRAM,
    cls=_Verbs,
    help=_HELP,
    epilog="Exit codes: 0 done, 1 failed, 2 usage error, 130 interrupted. With --json an error is on stdout "
    'too: {"error": {"message", "hint", "exit_code"}}.',
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_VERBS: tuple[Callable[..., None], ...] = (
    *(init.init, check.check, check.doctor, launch.launch, studies.status),
    *(report.compare, report.report, launch.resume, launch.sync),
    *(studies.stop, studies.finish, studies.add, studies.extend),
    *(registry.promote, registry.ls, registry.show, registry.history, registry.rollback, registry.rm),
    *(registry.pull, predict.predict, serve.serve, serve.ui, studies.gc),
)
for verb in _VERBS:
    app.command(name=verb.__name__.rstrip("_"))(verb)
app.add_typer(init.spaces, name="spaces", cls=_Verbs)
app.add_typer(studies.app, name="studies", cls=_Verbs)
app.add_typer(init.tasks, name="tasks", cls=_Verbs)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise Exit(0)


@app.callback(help=_HELP)
def _options(
    version: bool = Option(
        False, "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
    ),
    traceback: bool = Option(False, _TRACEBACK, help="Show where an error came from; anywhere on the line."),
) -> None:
    """Options of every verb; `run` takes `--traceback` out of the line before this is called."""


def main() -> NoReturn:
    """Run the command line of this process; exit 0 ok, 1 failed, 2 usage, 130 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # lines as they come: stdout and stderr may go to one file or pipe
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    # Nothing that is said steers a terminal. Data on stdout goes as it is, but to a terminal.
    sys.stderr = cast("TextIO", PlainText(sys.stderr))
    if sys.stdout.isatty():
        sys.stdout = cast("TextIO", PlainText(sys.stdout))
    logging.basicConfig(level=logging.WARNING, handlers=[Talk()])
    set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors go to stderr, with a traceback where it is asked for."""
    end = list(argv).index("--") if "--" in argv else len(argv)
    options = [arg for arg in argv[:end] if arg != _TRACEBACK]
    try:
        code = app([*options, *argv[end:]], prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # the last stop: people get a sentence
        if len(options) < end:
            traceback.print_exception(error)
        return _report(error, _JSON in options)
    if code == INTERRUPTED:  # Typer's way to say that Ctrl-C was pressed
        return _report(KeyboardInterrupt(), _JSON in options)
    return code if isinstance(code, int) else 0


# ---- errors ----------------------------------------------------------------------------------------------------------
def _report(error: BaseException, as_json: bool) -> int:
    """Say an error on stderr, and on stdout as the document that `--json` asks for; return the exit code."""
    if isinstance(error, LoraxsError):
        message, hint, code = error.message, error.hint, error.exit_code
    elif isinstance(error, (Abort, KeyboardInterrupt)):
        message, hint, code = "interrupted", None, INTERRUPTED
    elif isinstance(error, TyperException):
        context: Any = getattr(error, "ctx", None)
        if context is not None and error.format_message() == context.get_help():  # a group without a verb
            tell(error.format_message())
            return error.exit_code
        message = _bad_value(error) or error.format_message()
        if hasattr(error, "possibilities"):  # an unknown option
            known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("-")]
            message = unknown_name("option", getattr(error, "option_name", ""), {*known, "--help", _TRACEBACK})
        path = PROGRAM if context is None else context.command_path
        message, hint, code = redact(message), f"see `{path} --help`", error.exit_code
    else:
        message, code = f"{type(error).__name__}: {error}", 1
        hint = f"this is a fault of {PROGRAM}: run again with {_TRACEBACK} and report it"
    tell(f"error: {message}")
    if hint:
        tell(f"\nhint: {hint}")
    if as_json:
        print(to_json({"error": {"message": message, "hint": hint, "exit_code": code}}, indent=2))
    return code


class Talk(logging.Handler):
    """Writes to what stderr is at the time: a live table stands in for it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(f"{record.levelname.lower()}: {plain(record.getMessage())}")

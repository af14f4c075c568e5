"""What a shell offers for a word: studies, trials, tasks and spaces of this machine, and arguments that declare it.

A completer is called between two key strokes, in its own process: it reads names from disk, asks no server,
imports nothing heavy, and offers nothing where it cannot tell. An argument that declares one completes itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from loraxs_search.errors import LoraxsError

Offered = list[tuple[str, str]]  # words and what is said of them, where the shell shows that


def studies(incomplete: str) -> Offered:
    """Offer the studies of this machine, newest first."""
    from loraxs_search.studies import list_studies

    return _beginning(incomplete, list_studies())


def trials(ctx: typer.Context, incomplete: str) -> Offered:
    """Offer the trials of the study that the command line names, those left out that it names too."""
    from loraxs_search.studies import trials_of

    named = ctx.params.get("trials") or ()
    of_study = trials_of(ctx.params.get("study") or "")
    return [
        (trial, state.value) for trial, state in of_study.items() if trial.startswith(incomplete) and trial not in named
    ]


def tasks(ctx: typer.Context, incomplete: str) -> Offered:
    """Offer the tasks of the registry and of the studies of this machine."""
    from loraxs_search.mlflow_uri import resolve_uri
    from loraxs_search.registry.names import known_tasks
    from loraxs_search.studies import studied_tasks

    names = set(studied_tasks())
    with contextlib.suppress(LoraxsError):
        names.update(known_tasks(resolve_uri(ctx.params.get("tracking_uri"))))
    return _beginning(incomplete, sorted(names))


def adapters(ctx: typer.Context, incomplete: str) -> Offered:
    """Offer what can be asked for answers: tasks, and the trials of a study once that is typed."""
    from loraxs_search.studies import list_studies, trials_of

    study, slash, begun = incomplete.partition("/")
    if slash:
        return [
            (f"{study}/{trial}", state.value) for trial, state in trials_of(study).items() if trial.startswith(begun)
        ]
    return tasks(ctx, incomplete) + _beginning(incomplete, [f"{name}/" for name in list_studies()])


def formats(incomplete: str) -> Offered:
    """Offer the forms that an adapter can be pulled in."""
    from loraxs_search.methods import NATIVE
    from loraxs_search.methods.export import FORMATS

    return _beginning(incomplete, [NATIVE, *FORMATS.names()])


def shipped(incomplete: str) -> Offered:
    """Offer the shipped spaces."""
    from loraxs_search.shipped_spaces import shipped_spaces

    return _beginning(incomplete, shipped_spaces())


def spaces(incomplete: str) -> Offered:
    """Offer the shipped spaces, and YAML files and folders as far as they are typed."""
    return shipped(incomplete) + [(path, "") for path in _files(incomplete)]


def well_known_tasks(incomplete: str) -> Offered:
    """Offer the tasks of the catalogue."""
    from loraxs_search.shipped_spaces import shipped_tasks

    return _beginning(incomplete, shipped_tasks())


def well_known_tasks_and_spaces(incomplete: str) -> Offered:
    """Offer either."""
    return well_known_tasks(incomplete) + spaces(incomplete)


# The parameters must have these names: `study`, and `trials` where several can be given.
StudyArgument = Annotated[str, typer.Argument(help="Name of the study.", autocompletion=studies)]
StudiesArgument = Annotated[
    list[str], typer.Argument(help="Names of studies.", metavar="STUDY", autocompletion=studies)
]
TaskArgument = Annotated[str, typer.Argument(help="Name of the task.", autocompletion=tasks)]
SpaceArgument = Annotated[
    str, typer.Argument(help="A space file, or the name of a shipped space.", autocompletion=spaces)
]
ShippedSpaceArgument = Annotated[str, typer.Argument(help="Name of a shipped space.", autocompletion=shipped)]


def _beginning(incomplete: str, names: Any) -> Offered:
    return [(name, "") for name in names if name.startswith(incomplete)]


def _files(incomplete: str) -> Iterator[str]:
    """Yield YAML files and folders whose paths begin like this, as they are typed."""
    folder, _, begun = incomplete.rpartition(os.sep)
    typed = f"{folder}{os.sep}" if os.sep in incomplete else ""
    with contextlib.suppress(OSError, RuntimeError):
        for path in sorted(Path(typed or ".").expanduser().iterdir()):
            if not path.name.startswith(begun) or (path.name.startswith(".") and not begun):
                continue
            if path.suffix in (".yaml", ".yml"):
                yield typed + path.name
            elif path.is_dir():
                yield f"{typed}{path.name}{os.sep}"

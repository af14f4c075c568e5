"""loraxs-search check SPACE"""

from __future__ import annotations

from typing import Annotated

import typer

from loraxs_search.cli._output import JsonOption, SetOption, emit


def command(
    space: Annotated[str, typer.Argument(help="A space file, or the name of a shipped space.")],
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a space against its base model: every fault, sizes at the extremes, modules of each group."""
    from loraxs_search.base_model import head_size, linear_modules, locate
    from loraxs_search.search_space import describe, load_space

    loaded = load_space(space, overrides=tuple(overrides or ()))
    base = locate(loaded.base_model)
    num_labels = max(1, len(loaded.task.labels))
    modules = linear_modules(base, loaded.task.kind, num_labels)
    loaded.check_against(modules)
    head = head_size(base, loaded.task.kind, num_labels)
    description = describe(loaded, modules, head_parameters=head)
    emit(as_json, description, lambda: print(description.text()))

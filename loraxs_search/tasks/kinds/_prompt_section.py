"""The keys of a prompt: a text with columns in braces, or messages for the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from loraxs_search.tasks.kinds._base import Fault, Keys
from loraxs_search.tasks.kinds._section import Section, Text
from loraxs_search.tasks.kinds._templates import Prompt


class MessageSection(Section):
    """`task.messages[]`: who says what."""

    role: Literal["system", "user", "assistant"]
    content: Text


class PromptSection(Section):
    """The keys of `task:` that make a prompt: one of the two."""

    prompt: Text | None = None
    messages: Annotated[list[MessageSection], Field(min_length=1)] | None = None


def prompt_fields(section: PromptSection) -> dict[str, Any]:
    """Return the keys of a prompt as `Task.settings` has them."""
    return section.model_dump(include={"prompt", "messages"}, exclude_none=True)


def prompt_laws(keys: Keys) -> Iterator[Fault]:
    """Yield what is wrong with the keys of a prompt."""
    if "prompt" not in keys or "messages" not in keys:  # one is faulty, and that is said
        given = [key for key in ("prompt", "messages") if keys.get(key) is not None]
    else:
        given = [key for key in ("prompt", "messages") if keys[key] is not None]
        if len(given) != 1:
            yield ("prompt",), f"must be given, or else `messages`, but got {'both' if given else 'neither'}."
    for key in given:
        try:
            prompt = Prompt.of({key: keys[key]})
        except ValueError as error:
            yield (key,), f"{error}."
        else:
            if not prompt.columns:
                yield (key,), f"must name a column in braces, as in {{question}}, but got {keys[key]!r}."
            if prompt.roles and prompt.roles[-1] != "user":
                yield (key,), f"must end with a message of the user, but the last one is of the {prompt.roles[-1]}."

"""Texts with columns in braces, and prompts made of them: what a language model is given of a row.

The keys of a space file for prompts are here, too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from loraxs_search.records.literals import Text
from loraxs_search.tasks.kinds._base import Section

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
DATE = date(2024, 7, 26)  # what templates that know no clock write, such as Llama 3's
_DATE_FORMS = [
    f"%{code}" for code in ("d", "-d", "e", "m", "-m", "b", "B", "y", "Y", "a", "A", "j", "F", "H", "M", "S")
]
_WHOLE = 1e15  # floats below it are written without a decimal point where they have no fraction


@dataclass(frozen=True)
class Template:
    """A text with columns in braces: `{question}`; `{{` and `}}` stand for single braces.

    Args:
        parts: Text and the column that follows it, in turn; the last part has no column.
    """

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, text: str) -> Template:
        """Read a template.

        Raises:
            ValueError: a brace has no partner, or none or nothing but white space stands between two.
        """
        parts: list[tuple[str, str | None]] = []
        literal, end = "", 0
        for match in _PARTS.finditer(text):
            literal += text[end : match.start()]
            end = match.end()
            name = match[1]
            if match[0] in ("{{", "}}"):
                literal += match[0][0]
            elif name is None:
                raise ValueError(f"must close each brace, or double a brace that is text, but got {text!r}")
            elif not name.strip():
                raise ValueError(f"must name a column between braces, but got {text!r}")
            else:
                parts.append((literal, name))
                literal = ""
        return cls((*parts, (literal + text[end:], None)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column, once, in order of first use."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, row: Mapping[str, Any]) -> str:
        """Return the text of a row, whose values are as `written` takes them.

        Raises:
            ValueError: a value cannot be written.
        """
        return "".join(literal if name is None else literal + written(row[name]) for literal, name in self.parts)


def written(value: Any) -> str:
    """Return a value of a data set as text.

    A text stays as it is; a number is written plainly, and a whole one without a decimal point; true, false, lists and
    maps are written as JSON writes them.

    Raises:
        ValueError: it is missing, not a number, not Unicode, or nothing that JSON knows; with what it must be.
    """
    if value is None:
        raise ValueError("have a value")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("be finite")
        return str(int(value)) if value.is_integer() and abs(value) < _WHOLE else repr(float(value))
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # neither a tokenizer nor a file takes it
        raise ValueError("be Unicode, without half of a surrogate pair") from None
    except (TypeError, ValueError):
        raise ValueError("be a text, or a value that JSON knows") from None
    return text


@dataclass(frozen=True)
class Prompt:
    """What stands before an answer: a text, or messages through the tokenizer's chat template.

    Args:
        contents: One template, or one for each message.
        roles: Who says each message; empty for a text.
    """

    contents: tuple[Template, ...]
    roles: tuple[str, ...] = ()

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Prompt:
        """Read the prompt of a task's keys, which have `prompt` or `messages`.

        Raises:
            ValueError: a template cannot be read.
        """
        messages = keys.get("messages")
        if messages is None:
            return cls((Template.of(keys["prompt"]),))
        roles = tuple(message["role"] for message in messages)
        return cls(tuple(Template.of(message["content"]) for message in messages), roles)

    @property
    def key(self) -> str:
        """The key of a space file that it is from."""
        return "messages" if self.roles else "prompt"

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column, once, in order of first use."""
        return tuple(dict.fromkeys(name for content in self.contents for name in content.columns))

    def fill(self, row: Mapping[str, Any]) -> list[str]:
        """Return the text, or the content of each message, of a row.

        Raises:
            ValueError: a value cannot be written.
        """
        return [content.fill(row) for content in self.contents]

    def ids(self, filled: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        """Return the tokens of prompts as `fill` made them, with what the tokenizer puts at a text's beginning.

        Nothing of what it may put at the end: an answer follows.
        """
        if self.roles:
            return token_ids([self.rendered(contents, tokenizer) for contents in filled], tokenizer)
        begin = begin_ids(tokenizer)
        return [begin + ids for ids in token_ids([texts[0] for texts in filled], tokenizer)]

    def end_id(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """Return the token that ends an answer; None if the tokenizer has none.

        For messages it is what ends the assistant's turn, otherwise the tokenizer's own end token.
        """
        end: int | None = tokenizer.eos_token_id
        if self.roles:
            said, filled = "\N{INVISIBLE SEPARATOR}", [""] * len(self.roles)
            text = self.rendered(filled, tokenizer, {"role": "assistant", "content": said})
            after = token_ids([text.rpartition(said)[2]], tokenizer)[0]
            if after and after[0] in tokenizer.all_special_ids:
                end = after[0]
        return end

    def rendered(
        self, contents: Sequence[str], tokenizer: PreTrainedTokenizerBase, answer: dict[str, str] | None = None
    ) -> str:
        """Return messages as the chat template writes them, up to where the answer begins, or with an answer."""
        messages = [{"role": role, "content": text} for role, text in zip(self.roles, contents, strict=True)]
        return render_chat(messages if answer is None else [*messages, answer], tokenizer, asks=answer is None)


def render_chat(messages: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, *, asks: bool) -> str:
    """Return messages as the chat template writes them; today's date is always the same one.

    Args:
        asks: Whether an answer is to follow.
    """
    template = tokenizer.get_chat_template()
    if "strftime_now" in template:  # the library's own function cannot be replaced from outside, but hidden
        forms = "".join(f" | replace({form!r}, {DATE.strftime(form)!r})" for form in _DATE_FORMS)
        template = f"{{%- macro strftime_now(form) -%}}{{{{ form{forms} }}}}{{%- endmacro -%}}{template}"
    rendered = tokenizer.apply_chat_template(
        [dict(message) for message in messages], chat_template=template, tokenize=False, add_generation_prompt=asks
    )
    return cast("str", rendered)


def token_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of texts, without what the tokenizer puts at the beginning or the end of a text."""
    if not texts:
        return []
    encoding = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoding["input_ids"]
    return ids


def continued_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the tokens of texts that continue another one.

    Some tokenizers put a space before each text. Here it would be one too many: such texts are read behind a line
    break, which is taken off again.
    """
    plain = token_ids(texts, tokenizer)
    first = "".join(tokenizer.convert_ids_to_tokens(token_ids(["a"], tokenizer)[0][:1]))
    if not first.startswith(("▁", "Ġ")):
        return plain
    before, behind = token_ids(["\n"], tokenizer)[0], token_ids([f"\n{text}" for text in texts], tokenizer)
    return [
        whole[len(before) :] if whole[: len(before)] == before else ids
        for whole, ids in zip(behind, plain, strict=True)
    ]


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer puts at the beginning of each text."""
    plain = token_ids(["a"], tokenizer)[0]
    whole: list[int] = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:start]


def num_begin(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many begin tokens a prompt has: one, or none."""
    return int(bool(ids) and ids[0] == tokenizer.bos_token_id)


def cut_prompt(ids: list[int], limit: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return at most `limit` tokens of a prompt: the begin token, and the last ones."""
    if len(ids) <= limit:
        return ids
    begin = num_begin(ids, tokenizer)
    return ids[:begin] + ids[len(ids) - (limit - begin) :]


class MessageSection(Section):
    """A message of the prompt, written as the tokenizer's chat template has it."""

    role: Literal["system", "user", "assistant"]
    """Who says it. The last message is the `user`'s."""
    content: Text
    """What is said, with columns in braces."""


class PromptSection(Section):
    """The keys of `task:` that make a prompt: one of the two."""

    prompt: Text | None = None
    """What the model reads: a text with columns in braces; `{{` and `}}` are single braces."""
    messages: Annotated[list[MessageSection], Field(min_length=1)] | None = None
    """Messages instead of `prompt`. The answer ends with what ends a turn in the chat template."""

"""The common part of kinds that a language model answers by its own words: a prompt, and an answer behind it.

The base has no head: an adapter is only R. A row is its prompt and its answer without the last token. What is read of
it are the hidden states before each of the answer's tokens: `positions` are theirs, `targets` the answer's tokens.
Prompt and answer are tokenised apart and joined, so that the boundary between them is the same in training and when an
adapter is asked.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field

from loraxs_search.errors import TaskDataError
from loraxs_search.records.codec import Split, Text
from loraxs_search.records.task import Task, TaskModel
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds._base import (
    Fault,
    ForwardRequest,
    Keys,
    PassOutputs,
    RowNumbers,
    RowScores,
    Scoring,
    Section,
    TaskKind,
    finite,
)
from loraxs_search.tasks.rows import Columns, Rows, SourceLocation, blank_rows, collected, raise_joined, refuse

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_PARTS = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
DATE = date(2024, 7, 26)  # what templates that know no clock write, such as Llama 3's
_DATE_FORMS = ("%d", "%-d", "%e", "%m", "%-m", "%b", "%B", "%y", "%Y", "%a", "%A", "%j", "%F", "%H", "%M", "%S")
_WHOLE = 1e15  # floats below it are written without a decimal point where they have no fraction


@dataclass(frozen=True)
class Template:
    """A text with columns in braces: `{question}`; `{{` and `}}` stand for single braces.

    Args:
        parts: Text and the column that follows it, in turn; the last part has no column.
        columns: Every column, once, in order of first use.
    """

    parts: tuple[tuple[str, str | None], ...]
    columns: tuple[str, ...]

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
        columns = tuple(dict.fromkeys(name for _, name in parts if name is not None))
        return cls((*parts, (literal + text[end:], None)), columns)

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
        columns: Every column, once, in order of first use.
    """

    contents: tuple[Template, ...]
    roles: tuple[str, ...]
    columns: tuple[str, ...]

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Prompt:
        """Read the prompt of a task's keys, which have `prompt` or `messages`.

        Raises:
            ValueError: a template cannot be read.
        """
        messages = keys.get("messages")
        roles = tuple(message["role"] for message in messages or ())
        texts = [keys["prompt"]] if messages is None else [message["content"] for message in messages]
        contents = tuple(map(Template.of, texts))
        columns = tuple(dict.fromkeys(name for content in contents for name in content.columns))
        return cls(contents, roles, columns)

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


def _cut_prompt(ids: list[int], limit: int, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return at most `limit` tokens of a prompt: the begin token, and the last ones."""
    if len(ids) <= limit:
        return ids
    begin = ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []
    return begin + ids[len(ids) - (limit - len(begin)) :]


class _MessageSection(Section):
    """A message of the prompt, written as the tokenizer's chat template has it."""

    role: Literal["system", "user", "assistant"]
    """Who says it. The last message is the `user`'s."""
    content: Text
    """What is said, with columns in braces."""


class PromptSection(Section):
    """The keys of `task:` that make a prompt: one of the two."""

    prompt: Text | None = None
    """What the model reads: a text with columns in braces; `{{` and `}}` are single braces."""
    messages: Annotated[list[_MessageSection], Field(min_length=1)] | None = None
    """Messages instead of `prompt`. The answer ends with what ends a turn in the chat template."""


_MOST_DRAWN = 10_000  # rows that examples are chosen from
_BETWEEN = "\n\n"  # after an example, where the prompt is a text


def _turns(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that only the first prompt begins with, and those that stand between two turns.

    The latter stand behind an answer without its end token, before the rest of the next prompt. In a chat, the former
    are what a template writes once, such as a system message. Where it differs from row to row, no prompt begins with
    them.
    """
    if not prompt.roles:
        begin = tokenizer.bos_token_id
        return [] if begin is None else [begin], continued_ids([_BETWEEN], tokenizer)[0]
    said, answer = "\N{INVISIBLE SEPARATOR}", "\N{INVISIBLE PLUS}"
    contents = [said if content.columns else content.fill({}) for content in prompt.contents]
    first = [{"role": role, "content": text} for role, text in zip(prompt.roles, contents, strict=True)]
    later = [{"role": "assistant", "content": answer}, *(it for it in first if it["role"] != "system")]
    texts = [render_chat(messages, tokenizer, asks=True) for messages in (first, first + later)]
    # A template may write a space before an answer, or thoughts only before the last one.
    single, behind = token_ids([texts[0], texts[1].rpartition(answer)[2]], tokenizer)
    same = 0
    while same < min(len(single), len(behind)) and single[-1 - same] == behind[-1 - same]:
        same += 1
    return single[: len(single) - same], behind[: len(behind) - same]


_CONTENTS = "contents"  # name of the messages' contents in `Rows.extras`


class LanguageModelKind(TaskKind):
    """An answer's tokens are learnt, and nothing of the prompt."""

    hub_pipeline = "text-generation"
    cut_part = "beginnings"
    shots = (0, 4)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.model, self.prompt = TaskModel("AutoModelForCausalLM"), Prompt.of(task.settings)
        key, self.question_columns = "messages" if self.prompt.roles else "prompt", self.prompt.columns
        self.columns = {f"{key}.{{{name}}}": name for name in self.prompt.columns}

    @classmethod
    def fields(cls, section: Any) -> dict[str, Any]:
        own = section.model_dump(include=set(cls.section.model_fields), exclude_none=True, by_alias=True)
        settings = {key: own[key] for key in cls.section.model_fields if key in own}
        return {"text": "", "label": "", "settings": settings}

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        given = [key for key in ("prompt", "messages") if keys.get(key) is not None]
        if len(given) != 1 and {"prompt", "messages"} <= keys.keys():  # else one is faulty, and that is said
            yield ("prompt",), f"must be given, or else `messages`, but got {'both' if given else 'neither'}."
        for key in given:
            try:
                prompt = Prompt.of({key: keys[key]})
            except ValueError as error:
                yield (key,), f"{error}."
                continue
            if not prompt.columns:
                yield (key,), f"must name a column in braces, as in {{question}}, but got {keys[key]!r}."
            if prompt.roles and prompt.roles[-1] != "user":
                yield (key,), f"must end with a message of the user, but the last one is of the {prompt.roles[-1]}."

    # ---- rows --------------------------------------------------------------------------------------------------------
    def blank_rows(self, columns: Columns, rows: Rows) -> list[int]:
        return blank_rows([columns.values[name] for name in self.prompt.columns])

    def written_rows(
        self, names: Sequence[str], columns: Columns, place: SourceLocation, errors: list[TaskDataError]
    ) -> list[dict[str, str]]:
        """Return these columns of each row as text, empty where a value is faulty; faults go to `errors`."""
        filled: list[dict[str, str]] = [{} for _ in next(iter(columns.values.values()))]
        for name in names:
            faults = dict[str, list[int]]()
            for row, value in enumerate(columns.values[name]):
                filled[row][name] = ""
                try:
                    filled[row][name] = written(value)
                except ValueError as error:
                    faults.setdefault(str(error), []).append(row)
            for law, rows in faults.items():
                with collected(errors):
                    refuse(self.task, f"`{name}` must {law} in each row", columns.values[name], rows, place)
        return filled

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[str, list[Any]]]:
        """Return the `texts` and the `extras` of rows that hold their prompts, made of the values of columns."""
        filled = [self.prompt.fill(row) for row in rows]
        return ["\n\n".join(contents) for contents in filled], {_CONTENTS: filled} if self.prompt.roles else {}

    def as_texts(self, row: Sequence[Any]) -> tuple[Any, ...]:
        texts = list(super().as_texts(row))
        for place, value in enumerate(texts):
            if isinstance(value, int | float):
                with contextlib.suppress(ValueError):
                    texts[place] = written(value)
        return tuple(texts)

    def asked(self, rows: Sequence[tuple[Any, ...]], place: SourceLocation) -> Rows:
        texts, extras = self.prompts([dict(zip(self.question_columns, row, strict=True)) for row in rows])
        return Rows(texts, None, np.full(len(rows), "", object), extras)

    # ---- tokens ------------------------------------------------------------------------------------------------------
    def tokenizer_faults(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
        from jinja2 import TemplateError

        prompt = self.prompt
        if prompt.roles and not tokenizer.chat_template:
            yield (
                "`messages` must have a tokenizer with a chat template, but this base model's has none.",
                "write the prompt as a text, under `prompt`, or choose a base model that was made for chats",
            )
        elif prompt.roles:
            try:
                for answer in (None, {"role": "assistant", "content": "a"}):
                    prompt.rendered(["a"] * len(prompt.roles), tokenizer, answer)
            except (TemplateError, TypeError, ValueError, KeyError) as error:
                fault = " ".join(str(error).split()) or type(error).__name__
                yield (
                    f"`messages` must fit the chat template of the base's tokenizer, which says: {fault.rstrip('.')}.",
                    "change `messages`, or write the prompt as a text, under `prompt`; many templates take no system"
                    " message, and want user and assistant in turn",
                )

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        end = self.prompt.end_id(tokenizer)
        return () if end is None else (end,)

    def joined(
        self,
        rows: Rows,
        tokenizer: PreTrainedTokenizerBase,
        answers: Sequence[Sequence[int]] | None,
        space: Sequence[int] | None = None,
    ) -> EncodedRows:
        """Return rows of prompt and answer, whose answers are learnt; without answers, only prompts.

        A prompt that is too long loses tokens from its left, but for the begin token. What is read of a prompt without
        answer is its last token. Where room for its answer cost a prompt tokens, the one that a question would have is
        in `extras`: scores are of the answers that `predict` gives, which knows no answer's length.

        Args:
            answers: The tokens of each answer.
            space: Tokens that each prompt leaves free below `max_length`; by default those of its answer, or one.
        Raises:
            TaskDataError: a prompt or an answer has no tokens, or too little of a prompt is left.
        """
        filled = rows.extras[_CONTENTS] if self.prompt.roles else [(text,) for text in rows.texts]
        prompts, most = self.prompt.ids(filled, tokenizer), self.task.max_length
        learnt = answers or [[0]] * len(rows)  # of a question, one place is read, and nothing learnt
        limits = [most - size for size in space or map(len, learnt)]
        place, errors = rows.place or SourceLocation("the request"), list[TaskDataError]()
        empty = [row for row, (ids, answer) in enumerate(zip(prompts, learnt, strict=True)) if not ids or not answer]
        with collected(errors):
            refuse(self.task, "prompt and answer must each have a token", rows.texts, empty, place)
        begin = tokenizer.bos_token_id
        if short := [row for row, limit in enumerate(limits) if limit < 1 + (prompts[row][:1] == [begin])]:
            longest = most - min(limits)
            errors.append(
                TaskDataError(
                    f"Task {self.task.name}: an answer must fit `max_length` with a token of its prompt at least, but"
                    f" in {place.name} those of {place.values(rows.texts, short)} do not: the longest has {longest}"
                    f" tokens, and max_length={most}.",
                    hint=f"raise `max_length` above {longest}, or shorten or remove the rows",
                )
            )
        raise_joined(self.task, errors)
        kept = [_cut_prompt(ids, limit, tokenizer) for ids, limit in zip(prompts, limits, strict=True)]
        asked = [_cut_prompt(ids, most - 1, tokenizer) for ids in prompts]
        longer = [ids if len(ids) > len(own) else [] for ids, own in zip(asked, kept, strict=True)]
        places = [range(len(p) - 1, len(p) + len(a) - 1) for p, a in zip(kept, learnt, strict=True)]
        return EncodedRows(
            ids=Ragged.of([p + list(a[:-1]) for p, a in zip(kept, learnt, strict=True)], np.int32),
            positions=Ragged.of([*map(list, places)], np.int32),
            targets=None if answers is None else Ragged.of(answers, np.int64),
            lost=np.array([len(all_) - len(ids) for ids, all_ in zip(kept, prompts, strict=True)], np.int32),
            extras=None if answers is None else Ragged.of(longer, np.int32),
        )

    # ---- worked examples ---------------------------------------------------------------------------------------------
    def with_examples(self, data: RowSource, rows: EncodedRows, shots: int, room: int) -> EncodedRows:
        """Return rows with worked examples before each prompt: rows of train that are whole, always the same ones.

        They are joined in the tokens of training: of a text, with an empty line between them; of messages, as turns of
        one chat. What is longer than the base's context loses tokens from its left, but for the begin token.

        Examples are drawn at random; where answers repeat, each of them as often as may be. A file may be sorted by its
        answers: its first rows would have the base say the same each time.

        Args:
            rows: Of a split: prompts with answers that are learnt.
            shots: How many examples; 0 leaves rows as they are.
            room: Tokens that each prompt leaves free at least.
        """
        if not shots:
            return rows
        tokenizer, train, answers = data.tokenizer, data.encoded("train"), data.labels("train")
        assert train.targets is not None  # they are learnt
        # Tokens that only the first prompt begins with; between an answer and the next prompt; that end an answer.
        head, between = _turns(self.prompt, tokenizer)
        end = self.prompt.end_id(tokenizer)
        whole = np.arange(len(train)) if train.lost is None else np.flatnonzero(train.lost == 0)
        seen, drawn = Counter[Any](), list[tuple[int, int]]()
        for number in np.random.default_rng(0).permutation(whole)[:_MOST_DRAWN].tolist():
            drawn.append((seen[answers[number]], number))
            seen[answers[number]] += 1

        def later(ids: list[int]) -> list[int]:
            return ids[len(head) :] if head and ids[: len(head)] == head else ids

        chosen = [number for _, number in sorted(drawn, key=itemgetter(0))[:shots]]
        prompts, before = train.take(np.array(chosen, np.int64)).prompts_alone(), list[int]()
        for place, number in enumerate(chosen):
            asked, answer = prompts.row(place).tolist(), train.targets.row(number).tolist()
            before += [*(later(asked) if before else asked), *(answer[:-1] if answer[-1] == end else answer), *between]
        prompts, ids, places = rows.prompts_alone(), list[list[int]](), list[list[int]]()
        for number in range(len(rows)):
            asked = prompts.row(number).tolist()
            rest = rows.ids.row(number)[len(asked) :].tolist()
            context = tokenizer.model_max_length - max(room, len(rest))
            kept = _cut_prompt([*before, *(later(asked) if before else asked)], context, tokenizer)
            ids.append(kept + rest)
            places.append(list(range(len(kept) - 1, len(kept) + len(rest))))
        return EncodedRows(Ragged.of(ids, np.int32), positions=Ragged.of(places, np.int32), targets=rows.targets)

    # ---- training and cheap scores -----------------------------------------------------------------------------------
    def loss(self, outputs: PassOutputs, batch: Batch) -> Tensor:
        from loraxs_search.tasks.kinds._token_loss import token_losses

        return batch.row_sums(token_losses(outputs, batch)[0])

    def score_tokens(self, data: RowSource, source: Split | EncodedRows, rows: RowNumbers) -> Scoring:
        """Yield one pass over rows of a source, and return losses and how many tokens were predicted, but no answers.

        Raises:
            TrialDivergedError: a loss is not finite.
        """
        encoded = data.encoded(source)
        losses, correct = yield ForwardRequest(source, rows, self.sums)
        return RowScores(None, finite(losses, "Losses").numpy(), encoded.counts(rows), correct.numpy())

    def sums(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        """Return each row's loss, (n,), and how many of its tokens were the likeliest, (n,) int64: a `reduce`."""
        from loraxs_search.tasks.kinds._token_loss import token_losses

        losses, is_likeliest = token_losses(outputs, batch)
        return batch.row_sums(losses), batch.row_sums(is_likeliest)

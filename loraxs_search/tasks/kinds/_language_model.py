"""The common part of kinds that a language model answers by its own words: a prompt, and an answer behind it.

The base has no head: an adapter is only R. A row is its prompt and its answer without the last token. What is read of
it are the hidden states before each of the answer's tokens: `positions` are theirs, `targets` the answer's tokens.
Prompt and answer are tokenised apart and joined, so that the boundary between them is the same in training and when an
adapter is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import Sample
from loraxs_search.records.literals import Split
from loraxs_search.records.task import TaskModel
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds._base import TaskKind
from loraxs_search.tasks.kinds._requests import ForwardRequest, PassOutputs, RequestGenerator, RowScores, Values
from loraxs_search.tasks.kinds._templates import Prompt, Template, continued_ids, cut_prompt, num_begin, written
from loraxs_search.tasks.rows import (
    Columns,
    Rows,
    SourceLocation,
    blank_rows,
    check_question,
    collected,
    raise_joined,
    refuse,
)

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from loraxs_search.tasks.batch import Batch, RowSource

_MOST_DRAWN = 10_000  # rows that examples are chosen from
_BETWEEN = "\n\n"  # after an example, where the prompt is a text

Ids = Sequence[int]


@dataclass(frozen=True)
class _Turns:
    """How prompts follow each other.

    Args:
        head: Tokens that only the first prompt begins with.
        between: Tokens between an answer, without its end token, and the next prompt, without its head.
        end: The token that ends an answer; None if there is none.
    """

    head: list[int]
    between: list[int]
    end: int | None

    @classmethod
    def of(cls, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> _Turns:
        end = prompt.end_id(tokenizer)
        if prompt.roles:
            return cls(*prompt.turns(tokenizer), end)
        begin = tokenizer.bos_token_id
        return cls([] if begin is None else [begin], continued_ids([_BETWEEN], tokenizer)[0], end)

    def later(self, ids: list[int]) -> list[int]:
        """Return a prompt as it is when it is not the first."""
        return ids[len(self.head) :] if self.head and ids[: len(self.head)] == self.head else ids

    def answered(self, ids: list[int], answer: list[int]) -> list[int]:
        """Return a prompt, its answer, and what comes before the next prompt."""
        without_end = answer[:-1] if answer[-1] == self.end else answer
        return [*ids, *without_end, *self.between]


def with_examples(rows: EncodedRows, prompt: Prompt, data: RowSource, *, shots: int, room: int) -> EncodedRows:
    """Return rows with worked examples before each prompt: rows of train that are whole, always the same ones.

    They are joined in the tokens of training: of a text, with an empty line between them; of messages, as turns of one
    chat. What is longer than the base's context loses tokens from its left, but for the begin token.

    Args:
        rows: Of a split: prompts with answers that are learnt.
        room: Tokens that each prompt leaves free at least.
    """
    turns, limit = _Turns.of(prompt, data.tokenizer), data.tokenizer.model_max_length
    before = _before(turns, data, shots)
    ids, places = list[list[int]](), list[list[int]]()
    for number in range(len(rows)):
        asked, rest = _parts(rows, number)
        whole = [*before, *(turns.later(asked) if before else asked)]
        kept = cut_prompt(whole, limit - max(room, len(rest)), data.tokenizer)
        ids.append(kept + rest)
        places.append(list(range(len(kept) - 1, len(kept) + len(rest))))
    return EncodedRows(Ragged.of(ids, np.int32), positions=Ragged.of(places, np.int32), targets=rows.targets)


def _before(turns: _Turns, data: RowSource, shots: int) -> list[int]:
    train = data.encoded("train")
    assert train.targets is not None  # they are learnt
    whole = np.arange(len(train)) if train.cut is None else np.flatnonzero(~train.cut)
    before: list[int] = []
    for number in _drawn(whole, data.labels("train"), shots):
        asked, _ = _parts(train, number)
        before += turns.answered(turns.later(asked) if before else asked, train.targets.row(number).tolist())
    return before


def _drawn(rows: npt.NDArray[np.int64], answers: Values, count: int) -> list[int]:
    """Return some of these rows, at random but always the same; where answers repeat, each of them as often as may be.

    A file may be sorted by its answers: its first rows would have the base say the same each time.
    """
    seen, turns = Counter[Any](), list[tuple[int, int]]()
    for row in np.random.default_rng(0).permutation(rows)[:_MOST_DRAWN].tolist():
        turns.append((seen[answers[row]], row))
        seen[answers[row]] += 1
    return [row for _, row in sorted(turns, key=itemgetter(0))[:count]]


def _parts(rows: EncodedRows, number: int) -> tuple[list[int], list[int]]:
    """Return a row's prompt, and its answer without the last token."""
    assert rows.positions is not None
    ids, end = rows.ids.row(number).tolist(), int(rows.positions.row(number)[0]) + 1
    return ids[:end], ids[end:]


_MOST_SHOWN = 1000  # characters of a sample's texts
_JOINT = 10  # characters that are shown on either side of where prompt and answer meet
_SENTENCE_MARKS = (".", ",", ":", ";", "?", "!", ")")
_CONTENTS = "contents"  # name of the messages' contents in `Rows.extras`


class LanguageModelKind(TaskKind):
    """An answer's tokens are learnt, and nothing of the prompt."""

    hub_pipeline = "text-generation"
    cut_part = "beginnings"

    def keys(self) -> dict[str, Any]:
        return {"prompt": None, "messages": None, **self.task.settings}

    @property
    def model(self) -> TaskModel:
        return TaskModel("AutoModelForCausalLM")

    @property
    def prompt(self) -> Prompt:
        """What stands before each answer."""
        return Prompt.of(self.task.settings)

    @property
    def templates(self) -> Mapping[str, Template]:
        """The kind's other templates, by the key that messages call them."""
        return {}

    @property
    def columns(self) -> dict[str, str]:
        templates = {self.prompt.key: self.prompt.columns} | {key: it.columns for key, it in self.templates.items()}
        return {f"{key}.{{{name}}}": name for key, names in templates.items() for name in names}

    # ---- rows --------------------------------------------------------------------------------------------------------
    def read_prompts(
        self, columns: Columns, place: SourceLocation, errors: list[TaskDataError]
    ) -> tuple[list[str], dict[str, list[Any]]]:
        """Return the `texts` and the `extras` of rows that hold their prompts; faults go to `errors`."""
        prompt = self.prompt
        rows = self.written_rows(prompt.columns, columns, place, errors)
        return self.held([prompt.fill(row) for row in rows])

    def blank_rows(self, columns: Columns, rows: Rows) -> list[int]:
        return blank_rows([columns.values[name] for name in self.prompt.columns])

    def read_texts(
        self, template: Template, columns: Columns, place: SourceLocation, errors: list[TaskDataError]
    ) -> list[str]:
        """Return a template filled with each row; faults go to `errors`, and then some texts are wrong."""
        return [template.fill(row) for row in self.written_rows(template.columns, columns, place, errors)]

    def written_rows(
        self, names: Sequence[str], columns: Columns, place: SourceLocation, errors: list[TaskDataError]
    ) -> list[dict[str, str]]:
        """Return these columns of each row as text, empty where a value is faulty; faults go to `errors`."""
        texts = {name: self._written(name, columns.values[name], place, errors) for name in names}
        num_rows = len(next(iter(columns.values.values())))
        return [{name: texts[name][i] for name in names} for i in range(num_rows)]

    def _written(
        self, name: str, values: Sequence[Any], place: SourceLocation, errors: list[TaskDataError]
    ) -> list[str]:
        texts, faults = [""] * len(values), dict[str, list[int]]()
        for row, value in enumerate(values):
            try:
                texts[row] = written(value)
            except ValueError as error:
                faults.setdefault(str(error), []).append(row)
        for law, rows in faults.items():
            with collected(errors):
                refuse(self.task, f"`{name}` must {law} in each row", values, rows, place)
        return texts

    def held(self, filled: list[list[str]]) -> tuple[list[str], dict[str, list[Any]]]:
        """Return the `texts` and the `extras` of rows with these prompts, as `Prompt.fill` made them."""
        extras: dict[str, list[Any]] = {_CONTENTS: filled} if self.prompt.roles else {}
        return ["\n\n".join(contents) for contents in filled], extras

    @property
    def question_texts(self) -> tuple[str, ...]:
        return self.prompt.columns

    def as_texts(self, row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(map(_as_text, row))

    def questions(self, rows: Sequence[tuple[Any, ...]]) -> Rows:
        check_question(self.task, [self.as_texts(row) for row in rows], self.question_texts)
        named = [dict(zip(self.question_texts, row, strict=True)) for row in rows]
        texts, extras = self.held([self.prompt.fill(row) for row in named])
        return Rows(texts, None, np.full(len(rows), "", object), extras)

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        texts = [] if self.prompt.roles else [text for split in rows.values() for text in split.texts]
        if spaced := sum(text[-1:].isspace() for text in texts):
            yield (
                f"{spaced:,} of {len(texts):,} prompts end in white space: a model knows the space before a word as"
                " part of that word, so begin the answers with it instead"
            )
        if joint := [pair for split in rows.values() for pair in self._joints(split)]:
            prompt, answer = joint[0]
            yield (
                f"{len(joint):,} of {len(texts):,} answers follow their prompt without a space, as in"
                f" {prompt[-_JOINT:] + answer[:_JOINT]!r}: most models know a word with the space before it as another"
                " token, so begin the answers with a space"
            )

    def learnt_texts(self, rows: Rows) -> Sequence[Sequence[str]]:
        """Return what may stand behind each row's prompt."""
        return [()] * len(rows)

    def _joints(self, rows: Rows) -> Iterator[tuple[str, str]]:
        """Yield prompts with the first answer that runs on from each; nothing of messages."""
        for prompt, answers in zip(rows.texts, self.learnt_texts(rows), strict=True):
            answer = next((answer for answer in answers if _runs_on(prompt, answer)), None)
            if answer is not None and not self.prompt.roles:
                yield prompt, answer

    # ---- tokens ------------------------------------------------------------------------------------------------------
    def tokenizer_faults(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
        yield from super().tokenizer_faults(tokenizer)
        if self.prompt.roles and not tokenizer.chat_template:
            yield (
                "`messages` must have a tokenizer with a chat template, but this base model's has none.",
                "write the prompt as a text, under `prompt`, or choose a base model that was made for chats",
            )
        elif self.prompt.roles and (fault := self.prompt.template_fault(tokenizer)):
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
        prompts = self.prompt.ids(filled, tokenizer)
        free = space or [len(answer) for answer in answers or [[0]] * len(rows)]
        limits = [self.task.max_length - size for size in free]
        self._check_lengths(rows, prompts, answers, limits, tokenizer)
        kept = [cut_prompt(ids, limit, tokenizer) for ids, limit in zip(prompts, limits, strict=True)]
        asked = [cut_prompt(ids, self.task.max_length - 1, tokenizer) for ids in prompts]
        longer = [ids if len(ids) > len(own) else [] for ids, own in zip(asked, kept, strict=True)]
        learnt = answers or [[0]] * len(rows)  # of a question, one place is read, and nothing learnt
        places = [range(len(p) - 1, len(p) + len(a) - 1) for p, a in zip(kept, learnt, strict=True)]
        return EncodedRows(
            ids=Ragged.of([p + list(a[:-1]) for p, a in zip(kept, learnt, strict=True)], np.int32),
            positions=Ragged.of([*map(list, places)], np.int32),
            targets=None if answers is None else Ragged.of(answers, np.int64),
            lost=np.array([len(all_) - len(ids) for ids, all_ in zip(kept, prompts, strict=True)], np.int32),
            extras=None if answers is None else Ragged.of(longer, np.int32),
        )

    def _check_lengths(
        self,
        rows: Rows,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]] | None,
        limits: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        name, place = self.task.name, rows.place or SourceLocation("the request")
        errors: list[TaskDataError] = []
        empty = [row for row, ids in enumerate(prompts) if not ids or (answers is not None and not answers[row])]
        with collected(errors):
            refuse(self.task, "prompt and answer must each have a token", rows.texts, empty, place)
        short = [row for row, limit in enumerate(limits) if limit < 1 + num_begin(prompts[row], tokenizer)]
        if short:
            longest = self.task.max_length - min(limits)
            errors.append(
                TaskDataError(
                    f"Task {name}: an answer must fit `max_length` with a token of its prompt at least, but in"
                    f" {place.name} those of {place.values(rows.texts, short)} do not: the longest has {longest}"
                    f" tokens, and max_length={self.task.max_length}.",
                    hint=f"raise `max_length` above {longest}, or shorten or remove the rows",
                )
            )
        raise_joined(self.task, errors)

    # ---- samples -----------------------------------------------------------------------------------------------------
    def samples(self, data: RowSource, split: Split, rows: npt.NDArray[np.int64]) -> RequestGenerator[list[Sample]]:
        asked = data.encoded(split).take(rows)
        prompts = prompts_of(asked)
        every = range(len(asked))
        shown = [str(data.tokenizer.decode(prompts.row(row), skip_special_tokens=True)) for row in every]
        predictions = yield from self.predict(data, self.asked_again(asked), shown)
        references = self.shown_references(data, asked, data.labels(split)[rows])
        return [
            Sample(before[-_MOST_SHOWN:], reference[:_MOST_SHOWN], str(answer.label)[:_MOST_SHOWN])
            for before, reference, answer in zip(shown, references, predictions, strict=True)
        ]

    def asked_again(self, rows: EncodedRows) -> EncodedRows:
        """Return rows of a split as questions."""
        return rows

    def shown_references(self, data: RowSource, rows: EncodedRows, labels: npt.NDArray[Any]) -> list[str]:
        """Return what the answers to rows of a split are compared with."""
        return [self.show(label) for label in labels.tolist()]

    # ---- training and cheap scores -----------------------------------------------------------------------------------
    def loss(self, outputs: PassOutputs, batch: Batch) -> Tensor:
        from loraxs_search.tasks.kinds._token_loss import row_sums, token_losses

        return row_sums(token_losses(outputs, batch)[0], batch)

    def score_tokens(
        self, data: RowSource, source: Split | EncodedRows, rows: npt.NDArray[np.int64]
    ) -> RequestGenerator[RowScores]:
        """Yield one pass over rows of a source, and return losses and how many tokens were predicted, but no answers.

        Where nothing of them is learnt there is no pass.

        Raises:
            TrialDivergedError: a loss is not finite.
        """
        encoded = data.encoded(source)
        if encoded.targets is None:
            none = np.zeros(len(rows), np.int64)
            return RowScores(None, none.astype(np.float32), none, none)
        losses, correct = yield ForwardRequest(source, rows, self.sums)
        return RowScores(None, finite(losses), encoded.counts(rows), correct.numpy())

    def sums(self, outputs: PassOutputs, batch: Batch) -> tuple[Tensor, ...]:
        """Return each row's loss, (n,), and how many of its tokens were the likeliest, (n,) int64: a `reduce`."""
        from loraxs_search.tasks.kinds._token_loss import row_sums, token_losses

        losses, is_likeliest = token_losses(outputs, batch)
        return row_sums(losses, batch), row_sums(is_likeliest, batch)


def _runs_on(prompt: str, answer: str) -> bool:
    """Whether an answer begins with a letter or digit of a script that has spaces, right behind a word or its mark."""
    first, last = answer[:1], prompt[-1:]
    return (first.isdigit() or first.lower() != first.upper()) and (last.isalnum() or last in _SENTENCE_MARKS)


def prompts_of(rows: EncodedRows) -> Ragged:
    """Return the prompt of each row of a split: what stands before the first token that is learnt."""
    assert rows.positions is not None  # there is no head
    ends = rows.positions.values[rows.positions.starts] + 1
    return Ragged.of([rows.ids.row(row)[:end] for row, end in enumerate(ends)], np.int32)


def finite(losses: Tensor) -> npt.NDArray[np.float32]:
    """Return losses as an array.

    Raises:
        TrialDivergedError: one is not finite.
    """
    values: npt.NDArray[np.float32] = losses.numpy()
    if not np.isfinite(values).all():
        raise TrialDivergedError("Losses must be finite, but some are NaN or infinite.")
    return values


def _as_text(value: Any) -> Any:
    try:
        return written(value) if isinstance(value, int | float) else value
    except ValueError:
        return value

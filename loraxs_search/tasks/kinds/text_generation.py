"""A text behind each prompt, which the model writes.

The answer's tokens are learnt, and the token that ends it. What is written is scored by the answer in it, compared with
a reference. Labels are references and predictions are answers, both texts in one form (`_answers`), so that equal means
right; a prediction is empty where no answer was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from loraxs_search.errors import TaskDataError, TrialDivergedError
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.literals import Count, Split, Text, distinct
from loraxs_search.records.task import AnswerFact, Serving, Task
from loraxs_search.tasks.encoded import EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds import _answers
from loraxs_search.tasks.kinds._base import (
    Fault,
    Generated,
    GenerateRequest,
    Keys,
    RequestGenerator,
    RowScores,
    Sampling,
    Section,
)
from loraxs_search.tasks.kinds._language_model import (
    LanguageModelKind,
    PromptSection,
    Template,
    continued_ids,
    prompts_of,
    with_examples,
)
from loraxs_search.tasks.metrics import TEXT_METRICS, Values
from loraxs_search.tasks.rows import Columns, Rows, SourceLocation, blank_rows, collected, raise_joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_ANSWERS = "answer"  # name of the learnt texts in `Rows.extras`
_OFTEN = 0.1  # a share of answers that cannot be chance or a few odd rows


class _GenerationSection(Section):
    """How answers are written."""

    max_new_tokens: Count = 128
    """Most tokens that are written for an answer."""
    stop: Annotated[list[Text], AfterValidator(distinct)] = []  # noqa: RUF012  # pydantic copies it
    """Texts that end an answer; neither they nor what follows counts."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Above 0, tokens are drawn, with logits divided by it. Otherwise the likeliest token is taken."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Tokens are drawn from the likeliest ones that have this share of the probability together. The default is 1."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Decides, together with the prompt, which tokens are drawn. The default is 0."""


class _TextGenerationSection(PromptSection):
    """A prompt, and the answer that the model learns to write behind it."""

    answer: Text
    """What the model learns to write, a text with columns in braces."""
    reference: Text | None = None
    """What a written answer is compared with. The default is the whole `answer`."""
    extract: _answers.Extraction | None = None
    """Which part of a written text is its answer. The default is the whole text."""
    generation: _GenerationSection = _GenerationSection()
    """How long an answer may be, what ends it, and whether tokens are drawn."""


class TextGeneration(LanguageModelKind):
    """A written text. The base itself answers, a decoder: the adapter has no head.

    Labels and predictions are texts.
    """

    name = "text-generation"
    section = _TextGenerationSection
    metrics = TEXT_METRICS
    report_metric = "loss"
    most_constants = 8
    asking = frozenset({"prompt", "messages", "answer", "generation"})

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        settings, prompt = task.settings, self.prompt
        self.templates = {key: Template.of(settings[key]) for key in ("answer", "reference") if key in settings}
        self.extraction = _answers.Extraction.model_validate(settings.get("extract") or {})
        self.generation = own = _GenerationSection.model_validate(settings.get("generation") or {})
        columns = {f"{key}.{{{name}}}": name for key, template in self.templates.items() for name in template.columns}
        self.columns = {**self.columns, **columns}
        # Of the answer, where what is written is compared with a reference, and no metric is of the answer's tokens.
        if "reference" in settings and all(self.metrics[name].column == "predictions" for name in task.metrics):
            answer, reference = self.templates["answer"], self.templates["reference"]
            self.spare_in_test = frozenset(answer.columns).difference(prompt.columns, reference.columns)
        self.serving = Serving(
            prompt=settings.get("prompt"),
            messages=tuple((message["role"], message["content"]) for message in settings.get("messages") or ()),
            stop=tuple(own.stop),
            max_new_tokens=own.max_new_tokens,
            temperature=own.temperature or 0.0,
            top_p=own.top_p or 1.0,
        )

    @classmethod
    def laws(cls, keys: Keys) -> Iterator[Fault]:
        yield from super().laws(keys)
        for key in ("answer", "reference"):
            if isinstance(text := keys.get(key), str):
                try:
                    if not Template.of(text).columns:
                        yield (key,), f"must name a column in braces, as in {{answer}}, but got {text!r}."
                except ValueError as error:
                    yield (key,), f"{error}."
        if isinstance(keys.get("extract"), dict):
            yield from _answers.Extraction.laws(keys["extract"])
        generation = keys.get("generation")
        if isinstance(generation, dict) and not generation.get("temperature"):
            for key in ("top_p", "seed"):
                if generation.get(key) is not None:
                    law = "must stand beside a `temperature` above 0, without which nothing is drawn"
                    yield ("generation", key), f"{law}, but got {generation[key]}."

    # ---- rows --------------------------------------------------------------------------------------------------------
    def read(self, columns: Columns, place: SourceLocation) -> Rows:
        errors: list[TaskDataError] = []
        who, settings, stop = f"Task {self.task.name}:", self.task.settings, self.generation.stop
        texts, extras = self.prompts(self.written_rows(self.prompt.columns, columns, place, errors))
        known = len(errors)
        filled: dict[str, list[str]] = {}
        for key, template in self.templates.items():
            if all(name in columns.values for name in template.columns):  # answers may be missing from test rows
                rows = self.written_rows(template.columns, columns, place, errors)
                filled[key] = [template.fill(row) for row in rows]
        answers = filled.get("answer", [])
        said = _as_written(answers, stop)
        references: Sequence[str] = filled.get("reference", said)
        labels: list[str] = []
        if len(errors) == known:
            stored = [columns.values[name] for name in self.templates["answer"].columns] if answers else []
            blank = blank_rows(stored)
            with collected(errors):
                if blank:
                    raise TaskDataError(
                        f"{who} each row must have an answer, but {place.name} has rows without: {place.first(blank)}.",
                        hint="write their answers, or remove the rows",
                    )
                if always := [text for text in stop if said and all(text in own for own in said)]:
                    raise TaskDataError(
                        f"{who} a stop string must not be in the answers, but {always[0]!r} is in every answer of"
                        f" {place.name}: no answer could be written whole.",
                        hint="take it out of `generation.stop`, or out of the answers",
                    )
            with collected(errors):
                try:
                    labels = self.extraction.references(references, whole="reference" not in settings)
                except TimeoutError as error:
                    slow = place.values(references, [references.index(error.args[0])])
                    raise TaskDataError(
                        f"{who} `extract.regex` must be found or missed in {_answers.MATCH_SECONDS:g} seconds, but"
                        f" takes longer in {place.name} on {slow}.",
                        hint="write it without a repetition inside a repetition, such as (a+)+",
                    ) from None
                if lost := [row for row, label in enumerate(labels) if not label and row not in blank]:
                    what = "reference" if "reference" in settings else "answer"
                    raise TaskDataError(
                        f"{who} `extract` must find something in each row's {what}, but in {place.name} it finds"
                        f" nothing in {place.values(references, lost)}.",
                        hint="correct `extract` or `reference`, or correct or remove the rows",
                    )
        raise_joined(self.task, errors)
        return Rows(texts, None, np.array(labels, object), {**extras, _ANSWERS: answers} if answers else extras)

    def hides_answers(self, columns: Columns) -> bool:
        templates = self.templates
        stored = [columns.values[name] for name in templates.get("reference", templates["answer"]).columns]
        return all(value is None or not str(value).strip() for column in stored for value in column)

    def warnings(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[str]:
        if set(self.templates["answer"].columns) <= set(self.prompt.columns):
            yield "each column of `answer` is in the prompt too, which gives the answer away"
        for split, own in rows.items():
            answers = _as_written(own.extras.get(_ANSWERS, []), self.generation.stop)
            for text in self.generation.stop:
                if holding := sum(text in answer for answer in answers):
                    yield (
                        f"{holding:,} of {len(answers):,} {split} answers have the stop string {text!r} in them: what"
                        " follows it could never be written; take it out of `generation.stop`, or out of the answers"
                    )
        most = self.generation.max_new_tokens
        for split, tokens in encoded.items():
            counts = tokens.counts(np.arange(len(tokens)))
            if long := int(np.count_nonzero(counts > most)):
                yield (
                    f"{long:,} of {len(tokens):,} {split} answers have more than max_new_tokens={most} tokens, the"
                    f" longest {counts.max()}: raise `generation.max_new_tokens`, or they cannot be written whole"
                )

    def answer_facts(self, rows: Mapping[Split, Rows], encoded: Mapping[Split, EncodedRows]) -> Iterator[AnswerFact]:
        counts = {split: np.unique(own.labels, return_counts=True)[1] for split, own in rows.items()}
        yield AnswerFact("different", {split: len(own) for split, own in counts.items()})
        yield AnswerFact("commonest", {split: int(own.max()) for split, own in counts.items()})
        tokens = {split: own.counts(np.arange(len(own))) for split, own in encoded.items() if own.targets is not None}
        yield AnswerFact("answer tokens", {split: int(np.median(own)) for split, own in tokens.items()})
        yield AnswerFact("longest", {split: int(own.max()) for split, own in tokens.items()})

    # ---- tokens ------------------------------------------------------------------------------------------------------
    def tokenizer_faults(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
        faults = [*super().tokenizer_faults(tokenizer)]
        yield from faults
        generation, context, length = self.generation, tokenizer.model_max_length, self.task.max_length
        if not faults and length <= context < length + generation.max_new_tokens:
            yield (
                f"`max_length` and `generation.max_new_tokens` together must be at most {context} with this base model,"
                f" but got max_length={length} and max_new_tokens={generation.max_new_tokens}.",
                "lower one of them, or choose another base model",
            )
        elif not faults and not generation.stop and self.prompt.end_id(tokenizer) is None:
            yield (
                "`generation.stop` must name a text where the base model has no end token, since no answer would ever"
                " end.",
                "add a text that follows each answer, also to `answer`, or choose another base model",
            )

    def encode(self, rows: Rows, tokenizer: PreTrainedTokenizerBase) -> EncodedRows:
        if _ANSWERS not in rows.extras:
            return self.joined(rows, tokenizer, None)
        ends = self.end_ids(tokenizer)
        answers = continued_ids(rows.extras[_ANSWERS], tokenizer)
        for end in ends:
            if ended := [row for row, ids in enumerate(answers) if end in ids]:
                token, place = tokenizer.convert_ids_to_tokens(end), rows.place or SourceLocation("the request")
                raise TaskDataError(
                    f"Task {self.task.name}: an answer must not have the end token {token} in its text, but in"
                    f" {place.name} those of {place.values(rows.texts, ended)} have it.",
                    hint="take it out of `answer` and of the rows: it is added to each answer",
                )
        return self.joined(rows, tokenizer, [[*ids, *ends] for ids in answers])

    # ---- scoring -----------------------------------------------------------------------------------------------------
    def score(self, data: RowSource, split: Split, rows: npt.NDArray[np.int64]) -> RequestGenerator[RowScores]:
        scores = yield from self.score_tokens(data, split, rows)
        if not self.reports_answers:
            return scores
        return (yield from self._with_answers(scores, data, data.encoded(split).take(rows), data.labels(split)[rows]))

    def asked_as(self, trained: Task) -> Task:
        """Have the answer looked for where the adapter writes it, and compared in the form that this task says."""
        task = super().asked_as(trained)
        own, held = trained.settings.get("extract") or {}, self.task.settings.get("extract") or {}
        extract = {key: own[key] for key in ("after", "regex") if key in own}
        extract |= {key: held[key] for key in ("one_of", "as") if key in held}
        if task == self.task and extract == held:
            return task
        others = {key: value for key, value in task.settings.items() if key != "extract"}
        # What is written ends before the stop string that the answer ends with.
        literal, answer = self.templates["answer"].parts[-1][0], self.task.settings["answer"]
        (kept,) = _as_written([literal], self.generation.stop)
        stop = literal[len(kept) :].replace("{", "{{").replace("}", "}}")
        settings = {"reference": str(answer.removesuffix(stop)), **others}
        return replace(task, settings=settings | ({"extract": extract} if extract else {}))

    def base_alone(
        self, data: RowSource, split: Split, rows: npt.NDArray[np.int64], shots: int
    ) -> RequestGenerator[RowScores]:
        asked, room = data.encoded(split).take(rows), self.generation.max_new_tokens
        if shots:
            asked = with_examples(asked, self.prompt, data, shots=shots, room=room)
        scores = yield from self.score_tokens(data, asked, np.arange(len(asked)))
        if not self.reports_answers:
            return scores
        return (yield from self._with_answers(scores, data, asked, data.labels(split)[rows]))

    def predict(
        self, data: RowSource, questions: EncodedRows, shown: Sequence[str]
    ) -> RequestGenerator[list[Prediction]]:
        written = yield from self._write(data, questions)
        return [Prediction(row, text.strip(), None) for row, text in zip(shown, written.texts, strict=True)]

    def _with_answers(
        self, scores: RowScores, data: RowSource, rows: EncodedRows, references: Values
    ) -> RequestGenerator[RowScores]:
        """Yield what writes the answers to rows, whose prompts end where their answers begin; add them to scores."""
        written = yield from self._write(data, self.asked_again(rows))
        answers = self.extraction.settled([self.extraction.find(text) for text in written.texts], references.tolist())
        return RowScores(answers, scores.losses, scores.counts, scores.correct, written.ended)

    def asked_again(self, rows: EncodedRows) -> EncodedRows:
        prompts = prompts_of(rows)
        if rows.extras is None:  # worked examples stand before them
            return EncodedRows(prompts)
        pairs = [(rows.extras.row(number), prompts.row(number)) for number in range(len(rows))]
        return EncodedRows(Ragged.of([longer if len(longer) else own for longer, own in pairs], np.int32))

    def _write(self, data: RowSource, prompts: EncodedRows) -> RequestGenerator[Generated]:
        settings, sampling = self.generation, None
        if settings.temperature:
            sampling = Sampling(settings.seed or 0, settings.temperature, settings.top_p or 1.0)
        stop, ends = tuple(settings.stop), self.end_ids(data.tokenizer)
        written: Generated = yield GenerateRequest(
            prompts, np.arange(len(prompts)), settings.max_new_tokens, stop, sampling, ends
        )
        if np.isnan(written.margins).any():
            raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")
        return written

    def score_warnings(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        if (cut := metrics.get("unended", 0.0)) >= _OFTEN:
            yield (
                "unended",
                f"{cut:.0%} of the answers were cut at max_new_tokens={self.generation.max_new_tokens}: raise"
                " `generation.max_new_tokens`, or end answers by a text in `generation.stop`",
            )
        if (lost := metrics.get("unparsed", 0.0)) >= _OFTEN:
            yield (
                "unparsed",
                f"`extract` found nothing in {lost:.0%} of the answers, which count as wrong: let `extract` find what"
                " the model writes, or train longer"
                if "extract" in self.task.settings
                else f"{lost:.0%} of the answers are empty, and count as wrong: train longer, or give the model"
                " another `prompt`",
            )


def _as_written(answers: Sequence[str], stop: Sequence[str]) -> list[str]:
    """Return answers as a model writes them: without the stop string that ends them."""
    return [next((it.removesuffix(text) for text in stop if it.endswith(text)), it) for it in answers]

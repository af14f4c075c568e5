"""Bodies of requests, the engine's jobs that compute them, and answers, in the shapes of OpenAI's API and of vLLM's
`/classify`.

What a server does not do is refused, not ignored, before anything waits. Errors have one body, whatever was asked.
"""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, Field
from transformers import PreTrainedTokenizerBase

from loraxs_search.errors import TaskDataError, TrialDivergedError, UsageError, shortened
from loraxs_search.operating_points import with_points
from loraxs_search.records.adapter import Prediction
from loraxs_search.serve.engine import Job
from loraxs_search.serve.served_models import RefusedError, ServedAdapter
from loraxs_search.tasks.encoded import EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds import GenerateRequest, RequestGenerator, Sampling, begin_ids, render_chat, token_ids
from loraxs_search.tasks.rows import SourceLocation, is_text

Json = dict[str, Any]
_Row = str | dict[str, Any]
_Texts = str | list[str]

_SEED = 2**63  # as a float has it exactly: so do clients that read the schema
_COMPLETION_TOKENS = 16  # OpenAI's default
_LISTED = 5  # rows that a message names
_COLDEST = 1e-5  # below it the likeliest token is taken: logits divided by less overflow


@dataclass(frozen=True)
class Limits:
    """What a request may ask of a server.

    Args:
        body_bytes: Of a request.
        rows: Of a request.
        row_chars: Of a row: more than any model reads.
        options: Of a row that is answered by one of several.
        stops: Of a request: each new token is compared with all of them.
        stop_chars: Of one stop string.
        waiting_rows: Of all requests that wait; each option counts as a row.
        rows_at_once: Of one pass.
        kept_bytes: Of an API key's rows that are kept for training.
    """

    body_bytes: int = 4 << 20
    rows: int = 1024
    row_chars: int = 200_000
    options: int = 256
    stops: int = 16
    stop_chars: int = 256
    waiting_rows: int = 2048
    rows_at_once: int = 64
    kept_bytes: int = 64_000_000

    def check_count(self, count: int, param: str) -> None:
        """Refuse too many rows, and none."""
        if not 1 <= count <= self.rows:
            law = f"`{param}` must have 1 to {self.rows} rows, but has {count}."
            raise RefusedError(413 if count else 400, law, param)

    def check_size(self, what: str, num_chars: int, param: str) -> None:
        """Refuse what is too long: it is tokenised whole, while others wait."""
        if num_chars > self.row_chars:
            law = f"A row may have at most {self.row_chars:,} characters, but {what} has {num_chars:,}."
            raise RefusedError(413, law, param)


# ---- rows ------------------------------------------------------------------------------------------------------------
_UNUSED = Field(description="accepted, and not used")


class _Body(BaseModel, extra="forbid", strict=True):
    model: Annotated[str, Field(description="TASK (its champion), TASK@alias, TASK:3, or the base", max_length=400)]
    user: Annotated[str | None, _UNUSED] = None


@dataclass(frozen=True)
class Answered:
    """Answers to rows.

    Args:
        rows: Their columns' values.
        num_cut: Rows that were longer than the task takes, and were cut.
    """

    rows: Sequence[tuple[Any, ...]]
    predictions: Sequence[Prediction]
    num_tokens: int
    num_cut: int


def answering_job(
    adapter: ServedAdapter, rows: Sequence[tuple[Any, ...]], place: SourceLocation, size: int, *, truncate: bool = True
) -> Job:
    """Return the job of some rows, whose result is `Answered`.

    Args:
        place: Where they stand in the request.
        size: Sequences that they are computed as.
        truncate: Whether rows are cut that are longer than the task takes; else they are an error.
    """
    kind = adapter.kind

    def ask(source: RowSource) -> RequestGenerator[Answered]:
        encoded = kind.encode_questions(rows, source.tokenizer, place)
        if encoded.lost is not None and encoded.num_cut and not truncate:
            longer = np.flatnonzero(encoded.lost).tolist()
            named = ", ".join(map(place.row, longer[:_LISTED])) + " and others" * (len(longer) > _LISTED)
            raise TaskDataError(
                f"A row must have at most {kind.task.max_length} tokens with `truncate: false`, but these are"
                f" longer: {named}."
            )
        predictions = yield from kind.predict(source, encoded, [kind.shown(row) for row in rows])
        predictions = with_points(predictions, adapter.manifest.operating_points)
        return Answered(rows, predictions, int(encoded.lengths.sum()), encoded.num_cut)

    return Job(adapter, size, ask)


class ClassifyBody(_Body):
    """Rows for an adapter's own answer, as `predict` gives it."""

    input: Annotated[
        _Row | list[_Row],
        Field(description="a text; an object with the task's columns where it reads several; or a list of such rows"),
    ]
    truncate: Annotated[
        bool, Field(description="cut rows that are longer than the task's `max_length`, as in training; else 400")
    ] = True

    def jobs(self, adapter: ServedAdapter, limits: Limits, param: str = "input") -> list[Job]:
        """Return the jobs of these rows, none with more than a pass has, unless it is one row; each gives `Answered`.

        Args:
            param: What the request calls them.
        Raises:
            RefusedError, TaskDataError: there is no row, there are too many, or one is not what the task reads.
        """
        listed = self.input if isinstance(self.input, list) else [self.input]
        limits.check_count(len(listed), param)
        kind, columns, rows = adapter.kind, adapter.kind.question_columns, list[tuple[Any, ...]]()
        for number, row in enumerate(listed, 1):
            if len(columns) > 1 if isinstance(row, str) else set(row) != set(columns):
                got = "is a text" if isinstance(row, str) else f"has {', '.join(row) or 'nothing'}"
                law = f"A row must be an object with {', '.join(columns)}, but row {number} {got}."
                raise RefusedError(400, law, param)
            rows.append((row,) if isinstance(row, str) else tuple(row[name] for name in columns))
            limits.check_size(f"row {number}", sum(len(str(value)) for value in rows[-1]), param)
        sizes = kind.num_sequences(kind.questions(rows))
        jobs, start = list[Job](), 0
        for stop, size in enumerate(sizes, 1):
            if size > limits.options:
                law = f"A row may have at most {limits.options} options, but row {stop} has {size:,}."
                raise RefusedError(413, law, param)
            if stop == len(rows) or sum(sizes[start : stop + 1]) > limits.rows_at_once:
                place = SourceLocation("the request", None, range(start, stop))
                own = rows[start:stop], place, sum(sizes[start:stop])
                jobs.append(answering_job(adapter, *own, truncate=self.truncate))
                start = stop
        return jobs


class LabelBody(BaseModel, extra="forbid", strict=True):
    """Texts as Hugging Face's inference API takes them, for the probabilities of all labels."""

    inputs: Annotated[_Row | list[_Row], Field(description="as `input` of /classify")]
    parameters: Annotated[dict[str, Any] | None, Field(max_length=0)] = None


# ---- texts -----------------------------------------------------------------------------------------------------------
def _no_empty_text(stop: _Texts | None) -> _Texts | None:
    if "" in ([stop] if isinstance(stop, str) else stop or []):
        raise ValueError("must be texts that are not empty")
    return stop


@dataclass(frozen=True)
class _Written:
    """What was written after one prompt.

    Args:
        reason: Why it ended: `stop` by an end token or a stop string, or `length`.
    """

    text: str
    num_prompt_tokens: int
    num_tokens: int
    reason: str


_Prompt = str | Callable[[PreTrainedTokenizerBase], str]


class _WritingBody(_Body):
    temperature: Annotated[float | None, Field(ge=0, le=100, description="default: what the task says, or 0")] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-_SEED, le=_SEED, description="default: the task's own, or drawn")] = None
    stop: Annotated[_Texts | None, AfterValidator(_no_empty_text), Field(description="default: what the task says")] = (
        None
    )
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stream: bool = False
    stream_options: dict[Literal["include_usage", "include_obfuscation"], bool] | None = None
    presence_penalty: Annotated[float | None, Field(ge=0, le=0)] = None
    frequency_penalty: Annotated[float | None, Field(ge=0, le=0)] = None
    logit_bias: Annotated[dict[str, float] | None, Field(max_length=0)] = None
    metadata: Annotated[dict[str, str] | None, _UNUSED] = None
    prompt_cache_key: Annotated[str | None, _UNUSED] = None
    safety_identifier: Annotated[str | None, _UNUSED] = None
    service_tier: Annotated[str | None, _UNUSED] = None
    store: Annotated[bool | None, _UNUSED] = None

    def _jobs(
        self,
        adapter: ServedAdapter | None,
        limits: Limits,
        prompts: Sequence[_Prompt],
        max_tokens: int | None,
        default: int | None,
    ) -> list[Job]:
        """Return a job for each choice, those of a prompt side by side; each gives `_Written`.

        Args:
            default: `max_tokens` where neither body nor task says how many; None is what the context has left.
        Raises:
            RefusedError: the adapter classifies or chooses, there is no prompt, or there is too much of something.
        """
        serving = None if adapter is None else adapter.kind.serving
        if adapter is not None and serving is None:
            kind = adapter.manifest.task.kind
            raise RefusedError(400, f"{self.model} is of kind {kind}, which writes no text: use /classify.", "model")
        limits.check_count(len(prompts) * self.n, "prompt")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        longest = max(map(len, stops or ()), default=0)
        if len(stops or ()) > limits.stops or longest > limits.stop_chars:
            raise RefusedError(
                413,
                f"`stop` may have at most {limits.stops} strings of {limits.stop_chars} characters, but has"
                f" {len(stops or ()):,}, the longest of {longest:,}.",
                "stop",
            )
        sampling = self._sampling(adapter)

        def job(prompt: _Prompt, choice: int) -> Job:
            def ask(source: RowSource) -> RequestGenerator[_Written]:
                tokenizer, drawn = source.tokenizer, sampling
                text = prompt if isinstance(prompt, str) else prompt(tokenizer)
                if not is_text(text):
                    raise UsageError(f"A prompt must be text, but one is {shortened(text)}.")
                begin, (ids,) = begin_ids(tokenizer), token_ids([text], tokenizer)
                ids = ids if ids[: len(begin)] == begin else begin + ids  # a rendered chat has its beginning
                if not ids:
                    raise UsageError("A prompt must have a token, but one has none.")
                context = tokenizer.model_max_length
                limit = max_tokens or (serving.max_new_tokens if serving else None)
                limit = limit or max(1, context - len(ids) if default is None else default)
                if len(ids) + limit > context:
                    raise UsageError(
                        f"A prompt and what may be written after it must be at most {context} tokens with this base,"
                        f" but a prompt has {len(ids)}, and up to {limit} may follow.",
                        hint="shorten the prompt, or lower the number of tokens to write",
                    )
                if drawn is not None:  # each choice draws by itself
                    drawn = Sampling(drawn.seed + choice, drawn.temperature, drawn.top_p)
                ends = () if adapter is None else adapter.kind.end_ids(tokenizer)
                stop = tuple(stops) if stops is not None else serving.stop if serving else ()
                encoded = EncodedRows(Ragged.of([ids], np.int32))
                written = yield GenerateRequest(encoded, np.array([0]), limit, stop, drawn, ends)
                if not np.isfinite(written.margins).all():
                    raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")
                reason = "stop" if written.ended[0] else "length"
                return _Written(written.texts[0], len(ids), len(written.tokens.row(0)), reason)

            return Job(adapter, 1, ask)

        return [job(prompt, choice) for prompt in prompts for choice in range(self.n)]

    def _sampling(self, adapter: ServedAdapter | None) -> Sampling | None:
        """Return how tokens are drawn: what the body says, else the task; by default the likeliest token is taken."""
        temperature, top_p, seed = self.temperature, self.top_p, self.seed
        serving = None if adapter is None else adapter.kind.serving
        if adapter is not None and serving is not None and serving.temperature:  # the task draws
            if temperature is None and seed is None:  # as `predict` does
                seed = int((adapter.manifest.task.settings.get("generation") or {}).get("seed") or 0)
            temperature = serving.temperature if temperature is None else temperature
            top_p = serving.top_p if top_p is None else top_p
        elif temperature is None and top_p is not None:
            temperature = 1.0  # OpenAI's
        if not temperature or temperature < _COLDEST:
            return None
        seed = secrets.randbits(63) if seed is None else seed % (1 << 64)
        return Sampling(seed, temperature, 1.0 if top_p is None else top_p)


class CompletionBody(_WritingBody):
    """Prompts to be continued as they are."""

    prompt: _Texts
    max_tokens: Annotated[int | None, Field(ge=1, description="default: what the task says, or 16")] = None
    logprobs: None = None
    echo: Literal[False] = False
    best_of: Literal[1, None] = None
    suffix: None = None

    def jobs(self, adapter: ServedAdapter | None, limits: Limits) -> list[Job]:
        """Return a job for each choice; see `_jobs`.

        Raises:
            RefusedError: as `_jobs`, and a prompt is too long.
        """
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        for number, prompt in enumerate(prompts, 1):
            limits.check_size(f"prompt {number}", len(prompt), "prompt")
        return self._jobs(adapter, limits, prompts, self.max_tokens, _COMPLETION_TOKENS)


def _as_text(content: str | list[dict[Literal["type", "text"], str]]) -> str:
    """Return a message's content as one text; its parts are lines of it."""
    if isinstance(content, str):
        return content
    if not content or any(len(part) < 2 or part["type"] != "text" for part in content):
        raise ValueError('must be a text, or parts such as {"type": "text", "text": "a line"}')
    return "\n".join(part["text"] for part in content)


class Message(BaseModel, extra="forbid", strict=True):
    """A message, also as an earlier answer has it."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Annotated[str | list[dict[Literal["type", "text"], str]], AfterValidator(_as_text)]
    name: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class ChatBody(_WritingBody):
    """Messages, written as the base's chat template does."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[
        int | None, Field(ge=1, description="default: what the task says, or what the context has left")
    ] = None
    logprobs: Literal[False, None] = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=0)] = None
    tools: Annotated[list[Any] | None, Field(max_length=0)] = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Annotated[bool | None, _UNUSED] = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    modalities: list[Literal["text"]] | None = None

    def jobs(self, adapter: ServedAdapter | None, limits: Limits) -> list[Job]:
        """Return a job for each choice; see `_jobs`.

        Raises:
            RefusedError: as `_jobs`, the adapter was trained behind a prompt, or the messages are too long.
        """
        serving = None if adapter is None else adapter.kind.serving
        if serving is not None and serving.prompt is not None:
            raise RefusedError(
                400,
                f"{self.model} was trained behind a prompt, not on messages: ask /v1/completions with this prompt, its"
                f" columns filled in: {serving.prompt!r}.",
                "messages",
            )
        said = {"role", "name", "content"}
        messages = [message.model_dump(include=said, exclude_none=True) for message in self.messages]
        limits.check_size("this chat", sum(len(str(message)) for message in messages), "messages")

        def prompt(tokenizer: PreTrainedTokenizerBase) -> str:
            if not tokenizer.chat_template:
                raise UsageError(
                    "Messages need a base with a chat template, and this one has none.", hint="use /v1/completions"
                )
            try:
                return render_chat(messages, tokenizer, asks=True)
            except Exception as error:  # templates raise whatever they like about roles and their order
                raise UsageError(f"The base's chat template refuses these messages: {error}.") from error

        return self._jobs(adapter, limits, [prompt], self.max_completion_tokens or self.max_tokens, None)


# ---- answers ---------------------------------------------------------------------------------------------------------
class ErrorBody(BaseModel, extra="forbid"):
    """The answer to a request that is refused, or that the server fails at."""

    error: Annotated[
        dict[Literal["message", "type", "param", "code"], str | int | None],
        Field(description="`param` is the field of the request that is at fault, `code` the HTTP status"),
    ]


@dataclass(frozen=True)
class Answer:
    """The answer to a request; its methods return bodies, or chunks of a stream.

    Args:
        form: `classify`, `cmpl` or `chatcmpl`.
        model: As the client named it.
        digest: The adapter's, or the base's.
    """

    form: str
    model: str
    digest: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def classification(self, labels: Sequence[str], parts: Sequence[Answered]) -> Json:
        """Return the answers to rows: vLLM's shape, and beside it what vLLM has no field for."""
        data: list[Json] = []
        for answer in (answer for part in parts for answer in part.predictions):
            probs = None if answer.probabilities is None else [answer.probabilities[label] for label in labels]
            one: Json = {"index": len(data), "label": answer.label, "score": answer.score, "probs": probs}
            one["num_classes"] = len(labels)
            if answer.expected is not None:
                one["expected"] = answer.expected
            if answer.entities is not None:
                one["entities"] = [vars(entity) for entity in answer.entities]
            if answer.sure_at is not None:
                one["sure"] = [point for point, is_sure in answer.sure_at.items() if is_sure]
            data.append(one)
        tokens = sum(part.num_tokens for part in parts)
        usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
        truncated = sum(part.num_cut for part in parts)
        return self._body("list", data=data, labels=list(labels), usage=usage, truncated=truncated)

    def completion(self, texts: Sequence[_Written], num_choices: int) -> Json:
        """Return the texts of all choices, of which each prompt has `num_choices`."""
        choices = list[Json]()
        for index, written in enumerate(texts):
            said: Json = {"text": written.text}
            if self.form == "chatcmpl":
                said = {"message": {"role": "assistant", "content": written.text}}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": written.reason})
        asked = sum(written.num_prompt_tokens for written in texts[::num_choices])
        made = sum(written.num_tokens for written in texts)
        usage = {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
        kind = "text_completion" if self.form == "cmpl" else "chat.completion"
        return self._body(kind, choices=choices, usage=usage)

    def chunk(
        self,
        index: int | None,
        text: str | None = None,
        *,
        first: bool = False,
        reason: str | None = None,
        **usage: Any,
    ) -> Json:
        """Return a piece of a choice's text, or the reason why it ended; without a choice, what was used."""
        choices = list[Json]()
        if index is not None:
            own: Json = {"text": text or "", "logprobs": None}
            if self.form == "chatcmpl":
                own = {"delta": ({"role": "assistant"} if first else {}) | ({} if text is None else {"content": text})}
            choices.append({"index": index, **own, "finish_reason": reason})
        kind = "text_completion" if self.form == "cmpl" else "chat.completion.chunk"
        return self._body(kind, choices=choices, **usage)

    def _body(self, kind: str, **own: Any) -> Json:
        name, fingerprint = f"{self.form}-{self.id}", self.digest
        head = {"id": name, "object": kind, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": fingerprint, **own}

"""What a body asks for, as jobs for the engine; what cannot be done is refused before anything waits."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from loraxs_search.bank.answering import GenerateOptions, encoded_prompts, generate_request
from loraxs_search.errors import LoraxsError, TaskDataError, TrialDivergedError, UsageError
from loraxs_search.serve.bodies import Answered, ChatBody, ClassifyBody, CompletionBody, Row, Written
from loraxs_search.serve.engine import Job
from loraxs_search.serve.served_models import ServedAdapter
from loraxs_search.serve.token_texts import TokenReader
from loraxs_search.tasks.batch import RowSource
from loraxs_search.tasks.kinds import RequestGenerator, Sampling, render_chat
from loraxs_search.tasks.prepared import encode
from loraxs_search.tasks.rows import SourceLocation

_COMPLETION_TOKENS = 16  # OpenAI's default
_LISTED = 5  # rows that a message names
_COLDEST = 1e-5  # below it the likeliest token is taken: logits divided by less overflow


class RefusedError(LoraxsError):
    """A request that is answered with an error status.

    Args:
        param: The field of the body that is at fault.
    """

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param


@dataclass(frozen=True)
class Limits:
    """What a request may ask of a server.

    Args:
        body_bytes: Of a request.
        open_bytes: Of all requests that are read and not answered yet.
        rows: Of a request.
        row_chars: Of a row: more than any model reads.
        options: Of a row that is answered by one of several.
        stops: Of a request: each new token is compared with all of them.
        stop_chars: Of one stop string.
        waiting_rows: Of all requests that wait; each option counts as a row.
        rows_at_once: Of one pass.
    """

    body_bytes: int = 4 << 20
    open_bytes: int = 256 << 20
    rows: int = 1024
    row_chars: int = 200_000
    options: int = 256
    stops: int = 16
    stop_chars: int = 256
    waiting_rows: int = 2048
    rows_at_once: int = 64


# ---- rows ------------------------------------------------------------------------------------------------------------
def classify_jobs(adapter: ServedAdapter, body: ClassifyBody, limits: Limits) -> list[Job]:
    """Return the jobs of rows for an adapter's own answer, none with more than a pass has, unless it is one row.

    Raises:
        RefusedError, TaskDataError: there is no row, there are too many, or one is not what the task reads.
    """
    listed = body.input if isinstance(body.input, list) else [body.input]
    _check_count(len(listed), limits, "input")
    columns = adapter.kind.question_columns
    rows = [_row(number, row, columns) for number, row in enumerate(listed, 1)]
    for number, row in enumerate(rows, 1):
        _check_size(f"row {number}", sum(len(str(value)) for value in row), limits, "input")
    sizes = adapter.kind.num_sequences(adapter.kind.questions(rows))
    jobs, start = list[Job](), 0
    for stop in range(1, len(rows) + 1):
        if sizes[stop - 1] > limits.options:
            raise RefusedError(
                413,
                f"A row may have at most {limits.options} options, but row {stop} has {sizes[stop - 1]:,}.",
                "input",
            )
        if stop == len(rows) or sum(sizes[start : stop + 1]) > limits.rows_at_once:
            jobs.append(_rows_job(adapter, rows[start:stop], start, sum(sizes[start:stop]), truncate=body.truncate))
            start = stop
    return jobs


def _rows_job(
    adapter: ServedAdapter, rows: Sequence[tuple[Any, ...]], start: int, num_sequences: int, *, truncate: bool
) -> Job:
    """Return the job of an adapter's answers to some rows, which stand behind `start` others in the request."""
    kind, place = adapter.kind, SourceLocation("the request", None, range(start, start + len(rows)))

    def ask(source: RowSource) -> RequestGenerator[Answered]:
        encoded = encode(kind, source.tokenizer, rows, place)
        if encoded.cut is not None and encoded.num_cut and not truncate:
            longer = np.flatnonzero(encoded.cut).tolist()
            raise TaskDataError(
                f"A row must have at most {kind.task.max_length} tokens with `truncate: false`, but these are"
                f" longer: {', '.join(map(place.row, longer[:_LISTED]))}{' and others' * (len(longer) > _LISTED)}."
            )
        predictions = yield from kind.predict(source, encoded, [kind.shown(row) for row in rows])
        return Answered(predictions, int(encoded.lengths.sum()), encoded.num_cut)

    return Job(adapter, num_sequences, ask)


def _check_count(count: int, limits: Limits, param: str) -> None:
    if not 1 <= count <= limits.rows:
        raise RefusedError(
            400 if not count else 413, f"`{param}` must have 1 to {limits.rows} rows, but has {count}.", param
        )


def _check_size(what: str, num_chars: int, limits: Limits, param: str) -> None:
    """Refuse what is too long: it is tokenised whole, while others wait."""
    if num_chars > limits.row_chars:
        raise RefusedError(
            413, f"A row may have at most {limits.row_chars:,} characters, but {what} has {num_chars:,}.", param
        )


def _row(number: int, row: Row, columns: Sequence[str]) -> tuple[Any, ...]:
    shown = ", ".join(columns)
    if isinstance(row, str):
        if len(columns) > 1:
            raise RefusedError(400, f"A row must be an object with {shown}, but row {number} is a text.", "input")
        return (row,)
    if set(row) != set(columns):
        got = ", ".join(row) or "nothing"
        raise RefusedError(400, f"A row must be an object with {shown}, but row {number} has {got}.", "input")
    return tuple(row[name] for name in columns)


# ---- texts -----------------------------------------------------------------------------------------------------------
def completion_jobs(adapter: ServedAdapter | None, body: CompletionBody, limits: Limits) -> list[Job]:
    """Return a job for each choice, those of a prompt side by side.

    Raises:
        RefusedError, UsageError: as `_check_writes`, and where a field is not what it should be.
    """
    prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    for number, prompt in enumerate(prompts, 1):
        _check_size(f"prompt {number}", len(prompt), limits, "prompt")
    options = GenerateOptions.of(body.max_tokens, body.stop, _sampling(body, adapter), body.logprobs)
    _check_writes(adapter, body, len(prompts), limits)
    return [
        _job(adapter, prompt, _nth(options, choice), _COMPLETION_TOKENS)
        for prompt in prompts
        for choice in range(body.n)
    ]


def chat_jobs(adapter: ServedAdapter | None, body: ChatBody, limits: Limits) -> list[Job]:
    """Return a job for each choice.

    Raises:
        RefusedError, UsageError: as `completion_jobs`; the base has no chat template.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise RefusedError(400, "`top_logprobs` must stand beside `logprobs: true`.", "top_logprobs")
    serving = None if adapter is None else adapter.kind.serving
    if serving is not None and serving.prompt is not None:
        raise RefusedError(
            400,
            f"{body.model} was trained behind a prompt, not on messages: ask /v1/completions with this prompt, its"
            f" columns filled in: {serving.prompt!r}.",
            "messages",
        )
    messages = [message.model_dump(include={"role", "name"}, exclude_none=True) for message in body.messages]
    messages = [own | {"content": message.text} for own, message in zip(messages, body.messages, strict=True)]
    _check_size("this chat", sum(len(str(message)) for message in messages), limits, "messages")

    def prompt(tokenizer: PreTrainedTokenizerBase) -> str:
        if not tokenizer.chat_template:
            raise UsageError(
                "Messages need a base with a chat template, and this one has none.", hint="use /v1/completions"
            )
        try:
            return render_chat(messages, tokenizer, asks=True)
        except Exception as error:  # templates raise whatever they like about roles and their order
            raise UsageError(f"The base's chat template refuses these messages: {error}.") from error

    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    max_tokens = body.max_completion_tokens or body.max_tokens
    options = GenerateOptions.of(max_tokens, body.stop, _sampling(body, adapter), logprobs)
    _check_writes(adapter, body, 1, limits)
    return [_job(adapter, prompt, _nth(options, choice), None) for choice in range(body.n)]


def _check_stops(stop: str | list[str] | None, limits: Limits) -> None:
    texts = [stop] if isinstance(stop, str) else stop or []
    longest = max(map(len, texts), default=0)
    if len(texts) > limits.stops or longest > limits.stop_chars:
        raise RefusedError(
            413,
            f"`stop` may have at most {limits.stops} strings of {limits.stop_chars} characters, but has"
            f" {len(texts):,}, the longest of {longest:,}.",
            "stop",
        )


def _check_writes(
    adapter: ServedAdapter | None, body: CompletionBody | ChatBody, num_prompts: int, limits: Limits
) -> None:
    """Refuse what does not write.

    Raises:
        RefusedError: the adapter classifies or chooses, there is no prompt, or there are too many.
    """
    if adapter is not None and adapter.kind.serving is None:
        kind = adapter.manifest.task.kind
        raise RefusedError(400, f"{body.model} is of kind {kind}, which writes no text: use /classify.", "model")
    _check_count(num_prompts * body.n, limits, "prompt")
    _check_stops(body.stop, limits)
    if body.stream and body.logprobs is not None and body.logprobs is not False:
        raise RefusedError(400, "`logprobs` must stand without `stream`.", "logprobs")


def _sampling(body: CompletionBody | ChatBody, adapter: ServedAdapter | None) -> Sampling | None:
    """Return how tokens are drawn: what the body says, else the task; by default the likeliest token is taken."""
    temperature, top_p, seed = body.temperature, body.top_p, body.seed
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


def _nth(options: GenerateOptions, choice: int) -> GenerateOptions:
    """Return the options of one of several choices, each of which draws by itself."""
    if options.sampling is None or not choice:
        return options
    return replace(options, sampling=replace(options.sampling, seed=options.sampling.seed + choice))


def _job(
    adapter: ServedAdapter | None,
    prompt: str | Callable[[PreTrainedTokenizerBase], str],
    options: GenerateOptions,
    max_tokens: int | None,
) -> Job:
    """Return the job that continues one prompt.

    Args:
        max_tokens: Where neither body nor task says how many; None is what the context has left.
    """
    task = None if adapter is None else adapter.manifest.task
    serving = None if adapter is None else adapter.kind.serving

    def ask(source: RowSource) -> RequestGenerator[Written]:
        tokenizer, own = source.tokenizer, options
        text = prompt if isinstance(prompt, str) else prompt(tokenizer)
        if own.max_new_tokens is None and not (serving and serving.max_new_tokens):
            left = tokenizer.model_max_length - int(encoded_prompts([text], tokenizer).lengths[0])
            own = replace(own, max_new_tokens=max(1, left if max_tokens is None else max_tokens))
        request = generate_request([text], task, own, tokenizer)
        written = yield request
        if not np.isfinite(written.margins).all():
            raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")
        num_prompt, num_tokens = int(request.source.lengths[0]), len(written.tokens.row(0))
        text, logprobs = written.texts[0], written.logprobs[0]
        likely = TokenReader(tokenizer).read(logprobs, text) if logprobs else ()
        return Written(text, num_prompt, num_tokens, bool(written.ended[0]), likely)

    return Job(adapter, 1, ask)

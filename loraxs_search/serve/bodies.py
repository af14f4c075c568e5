"""Bodies of requests and answers, in the shapes of OpenAI's API and of vLLM's `/classify`, and what is computed for
them: jobs of the engine.

What a server does not do is refused, not ignored, before anything waits. Errors have one body, whatever was asked.
"""

from __future__ import annotations

import codecs
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from loraxs_search.bank.answering import GenerateOptions, encoded_prompts, generate_request
from loraxs_search.errors import LoraxsError, TaskDataError, TrialDivergedError, UsageError
from loraxs_search.records.adapter import Prediction
from loraxs_search.serve.engine import Job
from loraxs_search.serve.served_models import ServedAdapter, ServedModels
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds import RequestGenerator, Sampling, TokenLogprobs, render_chat
from loraxs_search.tasks.prepared import encode
from loraxs_search.tasks.rows import SourceLocation

_SPACE = "▁"  # in SentencePiece's tokens


@dataclass(frozen=True)
class LikelyToken:
    """A token of a text.

    Args:
        content: What it adds to the text, in UTF-8; nothing if it is no text, as an end token.
        offset: Characters of the text before it.
        likeliest: Other tokens in its place, the likeliest first.
    """

    content: bytes
    offset: int
    logprob: float
    likeliest: tuple[tuple[bytes, float], ...]


def read_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[TokenLogprobs], text: str) -> list[LikelyToken]:
    """Return tokens as bytes of the text that they are, without those behind a stop string."""
    no_text = {token for token, own in tokenizer.added_tokens_decoder.items() if own.special}
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    # Tokenizers show how they write bytes and spaces in what they make of these two characters.
    pieces = "".join(tokenizer.convert_ids_to_tokens(tokenizer(" é", add_special_tokens=False)["input_ids"]))
    has_bytes, has_spaces = "Ã©" in pieces, _SPACE in pieces
    found, before, offset = list[LikelyToken](), list[int](), 0

    def decode(some: Sequence[int]) -> str:
        return str(tokenizer.decode(list(some), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def content_of(token: int) -> bytes:
        """Return what a token adds to the text of the tokens before."""
        if token in no_text:
            return b""
        piece = str(tokenizer.convert_ids_to_tokens(token))
        if has_bytes:
            known = [byte_of.get(character) for character in piece]
            return piece.encode() if None in known else bytes(byte for byte in known if byte is not None)
        if not has_spaces:
            return decode([*before[-1:], token])[len(decode(before[-1:])) :].encode()
        if piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:-1])
        content = piece.replace(_SPACE, " ")
        if all(own in no_text for own in before) and not decode([token]).startswith(" "):
            content = content.removeprefix(" ")  # a text does not begin with the space of its first word
        return content.encode()

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for it in tokens:
        content = content_of(it.token)
        if content and offset >= len(text):
            break
        likeliest = tuple((content_of(token), value) for token, value in it.likeliest.items())
        found.append(LikelyToken(content, offset, it.logprob, likeliest))
        offset += len(decoder.decode(content))
        before.append(it.token)
    return found


Json = dict[str, Any]
Texts = str | list[str]
Row = str | dict[str, Any]

_SEED = 2**63  # as a float has it exactly: so do clients that read the schema


# ---- requests --------------------------------------------------------------------------------------------------------
class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_UNUSED = Field(description="accepted, and not used")


class _Body(_Strict):
    model: Annotated[str, Field(description="TASK (its champion), TASK@alias, TASK:3, or the base", max_length=400)]
    user: Annotated[str | None, _UNUSED] = None


class ClassifyBody(_Body):
    """Rows for an adapter's own answer, as `predict` gives it."""

    input: Annotated[
        Row | list[Row],
        Field(description="a text; an object with the task's columns where it reads several; or a list of such rows"),
    ]
    truncate: Annotated[
        bool, Field(description="cut rows that are longer than the task's `max_length`, as in training; else 400")
    ] = True


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: Annotated[bool, _UNUSED] = False


def _no_empty_text(stop: Texts | None) -> Texts | None:
    if "" in ([stop] if isinstance(stop, str) else stop or []):
        raise ValueError("must be texts that are not empty")
    return stop


class _WritingBody(_Body):
    temperature: Annotated[float | None, Field(ge=0, le=100, description="default: what the task says, or 0")] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-_SEED, le=_SEED, description="default: the task's own, or drawn")] = None
    stop: Annotated[Texts | None, AfterValidator(_no_empty_text), Field(description="default: what the task says")] = (
        None
    )
    n: Annotated[int, Field(ge=1, le=16)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[float | None, Field(ge=0, le=0)] = None
    frequency_penalty: Annotated[float | None, Field(ge=0, le=0)] = None
    logit_bias: Annotated[dict[str, float] | None, Field(max_length=0)] = None
    metadata: Annotated[dict[str, str] | None, _UNUSED] = None
    prompt_cache_key: Annotated[str | None, _UNUSED] = None
    safety_identifier: Annotated[str | None, _UNUSED] = None
    service_tier: Annotated[str | None, _UNUSED] = None
    store: Annotated[bool | None, _UNUSED] = None

    @property
    def stops(self) -> tuple[str, ...] | None:
        """The texts that end an answer; None is left to the task."""
        return (self.stop,) if isinstance(self.stop, str) else None if self.stop is None else tuple(self.stop)


class CompletionBody(_WritingBody):
    """Prompts to be continued as they are."""

    prompt: Texts
    max_tokens: Annotated[int | None, Field(ge=1, description="default: what the task says, or 16")] = None
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    echo: Literal[False] = False
    best_of: Literal[1, None] = None
    suffix: None = None


class TextPart(_Strict):
    """A part of a message; parts are lines of it."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """A message, also as an earlier answer has it."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class TextFormat(_Strict):
    type: Literal["text"]


class ChatBody(_WritingBody):
    """Messages, written as the base's chat template does."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[
        int | None, Field(ge=1, description="default: what the task says, or what the context has left")
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: Annotated[list[Any] | None, Field(max_length=0)] = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Annotated[bool | None, _UNUSED] = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None


class Fault(_Strict):
    """What is wrong."""

    message: str
    type: str
    param: Annotated[str | None, Field(description="the field of the request that is at fault")]
    code: Annotated[int, Field(description="the HTTP status")]


class ErrorBody(_Strict):
    """The answer to a request that is refused, or that the server fails at."""

    error: Fault


# ---- answers ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Answered:
    """Answers to rows, with what their tokens were.

    Args:
        num_cut: Rows that were longer than the task takes, and were cut.
    """

    predictions: Sequence[Prediction]
    num_tokens: int
    num_cut: int


@dataclass(frozen=True)
class Written:
    """What was written after one prompt.

    Args:
        ended: Whether an end token or a stop string ended it.
        logprobs: Of each token, where they were asked for.
    """

    text: str
    num_prompt_tokens: int
    num_tokens: int
    ended: bool
    logprobs: Sequence[LikelyToken] = ()


@dataclass(frozen=True)
class Asked:
    """A request, as its answer names it.

    Args:
        form: `classify`, `cmpl` or `chatcmpl`.
        model: As the client named it.
        adapter: None is the bare base.
        digest: The adapter's, or the base's.
    """

    form: str
    model: str
    adapter: ServedAdapter | None
    digest: str
    id: str
    created: int

    @classmethod
    def of(cls, form: str, model: str, adapter: ServedAdapter | None, models: ServedModels) -> Asked:
        digest = models.bank.base.weight_digest if adapter is None else adapter.digest
        name = f"{form}-{uuid.uuid4().hex}"
        return cls(form, model, adapter, digest, name, int(time.time()))

    def head(self, kind: str) -> Json:
        """Return the fields that every answer begins with."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.digest,
        }


def classification(asked: Asked, parts: Sequence[Answered]) -> Json:
    """Return the answers to rows: vLLM's shape, and beside it what vLLM has no field for."""
    assert asked.adapter is not None  # the base has no answers
    labels = asked.adapter.manifest.task.labels
    data: list[Json] = []
    for answer in (answer for part in parts for answer in part.predictions):
        probs = None if answer.probabilities is None else [answer.probabilities[label] for label in labels]
        one: Json = {"index": len(data), "label": answer.label, "score": answer.score, "probs": probs}
        one["num_classes"] = len(labels)
        if answer.entities is not None:
            one["entities"] = [vars(entity) for entity in answer.entities]
        data.append(one)
    tokens = sum(part.num_tokens for part in parts)
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    truncated = sum(part.num_cut for part in parts)
    return asked.head("list") | {"data": data, "labels": list(labels), "usage": usage, "truncated": truncated}


def completion(asked: Asked, texts: Sequence[Written], num_choices: int) -> Json:
    """Return the texts of all choices.

    Args:
        num_choices: Of each prompt.
    """
    choices = list[Json]()
    for index, written in enumerate(texts):
        tokens, logprobs = written.logprobs, None
        if asked.form == "cmpl":
            if tokens:
                logprobs = {
                    "tokens": [_shown(token.content) for token in tokens],
                    "token_logprobs": [token.logprob for token in tokens],
                    "top_logprobs": [{_shown(it): value for it, value in token.likeliest} for token in tokens],
                    "text_offset": [token.offset for token in tokens],
                }
            said: Json = {"text": written.text}
        else:
            if tokens:
                content = [
                    _token_logprob(token.content, token.logprob)
                    | {"top_logprobs": [_token_logprob(*other) for other in token.likeliest]}
                    for token in tokens
                ]
                logprobs = {"content": content}
            said = {"message": {"role": "assistant", "content": written.text}}
        choices.append({"index": index, **said, "logprobs": logprobs, "finish_reason": _reason(written)})
    kind = "text_completion" if asked.form == "cmpl" else "chat.completion"
    return asked.head(kind) | {"choices": choices, "usage": _usage(texts, num_choices)}


def piece(asked: Asked, index: int, text: str, *, first: bool) -> Json:
    """Return a piece of a choice's text as a chunk of a stream."""
    if asked.form == "cmpl":
        choice: Json = {"index": index, "text": text, "logprobs": None, "finish_reason": None}
        return asked.head("text_completion") | {"choices": [choice]}
    delta = ({"role": "assistant"} if first else {}) | {"content": text}
    return asked.head("chat.completion.chunk") | {"choices": [{"index": index, "delta": delta, "finish_reason": None}]}


def last_pieces(asked: Asked, texts: Sequence[Written], num_choices: int, *, usage: bool) -> Iterator[Json]:
    """Yield the chunks that end a stream: why each choice ended, and what was used."""
    kind = "text_completion" if asked.form == "cmpl" else "chat.completion.chunk"
    for index, written in enumerate(texts):
        own: Json = {"text": "", "logprobs": None} if asked.form == "cmpl" else {"delta": {}}
        yield asked.head(kind) | {"choices": [{"index": index, **own, "finish_reason": _reason(written)}]}
    if usage:
        yield asked.head(kind) | {"choices": [], "usage": _usage(texts, num_choices)}


def shown_models(models: ServedModels) -> Json:
    """Return the models of a server: what its names mean now, and the base where clients may ask it."""
    base, data = models.base.id, list[Json]()
    for name, adapter in models.served():
        task = adapter.manifest.task
        data.append(
            {
                "id": name,
                "object": "model",
                "created": adapter.created,
                "owned_by": "loraxs-search",
                "root": f"{adapter.task}:{adapter.version}",
                "parent": base,
                "kind": task.kind,
                "version": adapter.version,
                "digest": adapter.digest,
                "metric": task.metric,
                "score": adapter.manifest.test_metrics.get(task.metric),
                "columns": list(adapter.kind.question_columns),
                "labels": list(task.labels),
            }
        )
    if not models.bank.has_head:
        data.append({"id": base, "object": "model", "created": 0, "owned_by": "loraxs-search", "root": base})
    return {"object": "list", "data": data}


def _reason(written: Written) -> str:
    return "stop" if written.ended else "length"


def _usage(texts: Sequence[Written], num_choices: int) -> Json:
    asked = sum(written.num_prompt_tokens for written in texts[::num_choices])
    made = sum(written.num_tokens for written in texts)
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def _token_logprob(content: bytes, value: float) -> Json:
    return {"token": _shown(content), "logprob": value, "bytes": list(content)}


def _shown(content: bytes) -> str:
    """Return a token as text, or as OpenAI writes a part of a character."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


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
    kind, columns, rows = adapter.kind, adapter.kind.question_columns, list[tuple[Any, ...]]()
    for number, row in enumerate(listed, 1):
        got = "is a text" if isinstance(row, str) else f"has {', '.join(row) or 'nothing'}"
        if len(columns) > 1 if isinstance(row, str) else set(row) != set(columns):
            law = f"A row must be an object with {', '.join(columns)}, but row {number} {got}."
            raise RefusedError(400, law, "input")
        rows.append((row,) if isinstance(row, str) else tuple(row[name] for name in columns))
        _check_size(f"row {number}", sum(len(str(value)) for value in rows[-1]), limits, "input")
    sizes = kind.num_sequences(kind.questions(rows))

    def job(start: int, stop: int) -> Job:
        """Return the job of some of the rows."""
        own, place = rows[start:stop], SourceLocation("the request", None, range(start, stop))

        def ask(source: RowSource) -> RequestGenerator[Answered]:
            encoded = encode(kind, source.tokenizer, own, place)
            if encoded.cut is not None and encoded.num_cut and not body.truncate:
                longer = np.flatnonzero(encoded.cut).tolist()
                raise TaskDataError(
                    f"A row must have at most {kind.task.max_length} tokens with `truncate: false`, but these are"
                    f" longer: {', '.join(map(place.row, longer[:_LISTED]))}{' and others' * (len(longer) > _LISTED)}."
                )
            predictions = yield from kind.predict(source, encoded, [kind.shown(row) for row in own])
            return Answered(predictions, int(encoded.lengths.sum()), encoded.num_cut)

        return Job(adapter, sum(sizes[start:stop]), ask)

    jobs, start = list[Job](), 0
    for stop, size in enumerate(sizes, 1):
        if size > limits.options:
            law = f"A row may have at most {limits.options} options, but row {stop} has {size:,}."
            raise RefusedError(413, law, "input")
        if stop == len(rows) or sum(sizes[start : stop + 1]) > limits.rows_at_once:
            jobs.append(job(start, stop))
            start = stop
    return jobs


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


# ---- texts -----------------------------------------------------------------------------------------------------------
def completion_jobs(adapter: ServedAdapter | None, body: CompletionBody, limits: Limits) -> list[Job]:
    """Return a job for each choice, those of a prompt side by side.

    Raises:
        RefusedError, UsageError: as `_check_writes`, and where a field is not what it should be.
    """
    prompts = body.prompt if isinstance(body.prompt, list) else [body.prompt]
    for number, prompt in enumerate(prompts, 1):
        _check_size(f"prompt {number}", len(prompt), limits, "prompt")
    options = GenerateOptions(body.max_tokens, body.stops, _sampling(body, adapter), body.logprobs)
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
    options = GenerateOptions(max_tokens, body.stops, _sampling(body, adapter), logprobs)
    _check_writes(adapter, body, 1, limits)
    return [_job(adapter, prompt, _nth(options, choice), None) for choice in range(body.n)]


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
    stops = body.stops or ()
    longest = max(map(len, stops), default=0)
    if len(stops) > limits.stops or longest > limits.stop_chars:
        raise RefusedError(
            413,
            f"`stop` may have at most {limits.stops} strings of {limits.stop_chars} characters, but has"
            f" {len(stops):,}, the longest of {longest:,}.",
            "stop",
        )
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
        encoded = encoded_prompts([text], tokenizer)
        if own.max_new_tokens is None and not (serving and serving.max_new_tokens):
            left = tokenizer.model_max_length - int(encoded.lengths[0])
            own = replace(own, max_new_tokens=max(1, left if max_tokens is None else max_tokens))
        request = generate_request(encoded, [0], task, own, tokenizer)
        written = yield request
        if not np.isfinite(written.margins).all():
            raise TrialDivergedError("Logits must be finite, but some are NaN or infinite.")
        num_prompt, num_tokens = int(request.source.lengths[0]), len(written.tokens.row(0))
        text, logprobs = written.texts[0], written.logprobs[0]
        likely = read_tokens(tokenizer, logprobs, text) if logprobs else ()
        return Written(text, num_prompt, num_tokens, bool(written.ended[0]), likely)

    return Job(adapter, 1, ask)

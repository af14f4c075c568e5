"""Bodies of requests and answers, in the shapes of OpenAI's API and of vLLM's `/classify`.

What a server does not do is refused, not ignored. Errors have one body, whatever was asked.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from loraxs_search.records.adapter import Prediction
from loraxs_search.serve.served_models import ServedAdapter, ServedModels
from loraxs_search.serve.token_texts import LikelyToken

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


class _WritingBody(_Body):
    temperature: Annotated[float | None, Field(ge=0, le=100, description="default: what the task says, or 0")] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    seed: Annotated[int | None, Field(ge=-_SEED, le=_SEED, description="default: the task's own, or drawn")] = None
    stop: Annotated[Texts | None, Field(description="default: what the task says")] = None
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
    choices = [_choice(asked, index, written) for index, written in enumerate(texts)]
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
    base = models.base.id
    data: list[Json] = [_model(name, adapter, base) for name, adapter in models.served()]
    if not models.bank.has_head:
        data.append({"id": base, "object": "model", "created": 0, "owned_by": "loraxs-search", "root": base})
    return {"object": "list", "data": data}


def _model(name: str, adapter: ServedAdapter, base: str) -> Json:
    task = adapter.manifest.task
    value = adapter.manifest.test_metrics.get(task.metric)
    return {
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
        "score": value,
        "columns": list(adapter.kind.question_columns),
        "labels": list(task.labels),
    }


def _choice(asked: Asked, index: int, written: Written) -> Json:
    reason = _reason(written)
    if asked.form == "cmpl":
        logprobs = _completion_logprobs(written.logprobs) if written.logprobs else None
        return {"index": index, "text": written.text, "logprobs": logprobs, "finish_reason": reason}
    logprobs = {"content": [_chat_logprobs(token) for token in written.logprobs]} if written.logprobs else None
    message = {"role": "assistant", "content": written.text}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}


def _reason(written: Written) -> str:
    return "stop" if written.ended else "length"


def _usage(texts: Sequence[Written], num_choices: int) -> Json:
    asked = sum(written.num_prompt_tokens for written in texts[::num_choices])
    made = sum(written.num_tokens for written in texts)
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def _completion_logprobs(tokens: Sequence[LikelyToken]) -> Json:
    return {
        "tokens": [_shown(token.content) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{_shown(content): value for content, value in token.likeliest} for token in tokens],
        "text_offset": [token.offset for token in tokens],
    }


def _chat_logprobs(token: LikelyToken) -> Json:
    top = [_token_logprob(content, value) for content, value in token.likeliest]
    return _token_logprob(token.content, token.logprob) | {"top_logprobs": top}


def _token_logprob(content: bytes, value: float) -> Json:
    return {"token": _shown(content), "logprob": value, "bytes": list(content)}


def _shown(content: bytes) -> str:
    """Return a token as text, or as OpenAI writes a part of a character."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

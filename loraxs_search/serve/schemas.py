"""Bodies of requests, as OpenAI's and vLLM's clients send them. What a server does not do is refused, not ignored.

Errors have one body, whatever was asked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Texts = str | list[str]
Row = str | dict[str, Any]

_SEED = 2**63  # as a float has it exactly: so do clients that read the schema


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

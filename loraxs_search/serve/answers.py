"""Bodies of answers, in the shapes of OpenAI's API and of vLLM's `/classify`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loraxs_search.serve.requests import Answered, Written
from loraxs_search.serve.served_models import ServedAdapter, ServedModels
from loraxs_search.serve.token_texts import LikelyToken

Json = dict[str, Any]


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

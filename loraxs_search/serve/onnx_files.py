"""What an ONNX runtime elsewhere, such as a browser's, answers with: a graph of the base, and an adapter as its inputs.

`/onnx` describes what a model's name means now, and `/onnx/SHA256` is one of the files that it names. They are those of
`pull --format onnx`. Tasks share the graph, so that a promotion changes a file of some kilobytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Path as PathPart
from fastapi import Query, Request, Response
from fastapi.responses import FileResponse
from transformers import PreTrainedTokenizerBase

from loraxs_search.errors import UsageError
from loraxs_search.serve.engine import Job
from loraxs_search.serve.export_process import converted_elsewhere
from loraxs_search.serve.requests import RefusedError
from loraxs_search.serve.served_models import ServedAdapter
from loraxs_search.tasks.batch import RowSource
from loraxs_search.tasks.kinds import RequestGenerator, TaskKind
from loraxs_search.tasks.prepared import encode

Json = dict[str, Any]
ModelName = Annotated[str, Query(description="as in requests: TASK, TASK@alias or TASK:3", max_length=400)]
Sha256 = Annotated[str, PathPart(pattern="^[0-9a-f]{64}$")]

_GRAPH, _ABOUT = "model.onnx", "onnx.json"
_FILES = (_GRAPH, "adapter.safetensors", "tokenizer.json", "tokenizer_config.json")
_HEADED = "AutoModelForSequenceClassification"
_MOST_KEPT = 100  # exports that are remembered
_ODD_EXAMPLE = "½①Ⅷ 2² \ufeff| a\u0085c"  # whose characters some tokenizers take for digits or white space
_EXAMPLE = "Don't you think so? “Naïve” ÉTUDES, e.g. 12.5% of #7: 你好 мир 😀\n"


@dataclass(frozen=True)
class _Export:
    """An adapter as files.

    Args:
        paths: By sha256.
        about: What is said of it.
    """

    paths: dict[str, Path]
    about: Json

    @property
    def is_whole(self) -> bool:
        """Whether its files are still there: `gc` may remove them."""
        return all(path.is_file() for path in self.paths.values())


class OnnxFiles:
    """Routes that hand out adapters of `basis: top` in the form of `pull --format onnx`.

    Args:
        find: Returns the adapter of a name; None for the bare base.
        run: Has jobs computed for a request.
    """

    def __init__(
        self,
        find: Callable[[str], Awaitable[ServedAdapter | None]],
        run: Callable[[Request, Sequence[Job]], Awaitable[list[Any]]],
    ) -> None:
        self._find, self._run = find, run
        self._exports: dict[str, _Export] = {}  # by the adapter's digest, the oldest first
        self._exporting = asyncio.Lock()  # the others wait without a thread

    async def describe(self, model: ModelName, request: Request) -> Response:
        """Say how a model is computed elsewhere: files by their sha256, how texts become tokens, and an example."""
        export = await self._export(model, request)
        content = json.dumps({"model": model, **export.about}, ensure_ascii=False).encode()
        headers = {"etag": f'"{hashlib.sha256(content).hexdigest()}"', "cache-control": "no-cache"}
        return _unless_known(request, headers) or Response(content, media_type="application/json", headers=headers)

    async def file(self, sha256: Sha256, model: ModelName, request: Request) -> Response:
        """Return a file that `/onnx` names for this model; it never changes."""
        paths = next((own.paths for own in self._exports.values() if sha256 in own.paths and own.is_whole), None)
        if paths is None:  # another replica has named it
            paths = (await self._export(model, request)).paths
        if sha256 not in paths:
            raise RefusedError(404, f"{model} has no file of this sha256 now: ask `/onnx?model=` again.", "sha256")
        headers = {"etag": f'"{sha256}"', "cache-control": "private, max-age=31536000, immutable"}
        file = FileResponse(paths[sha256], media_type="application/octet-stream", headers=headers)
        return _unless_known(request, headers) or file

    async def _export(self, model: str, request: Request) -> _Export:
        """Return an adapter as files, which are made when it is first asked for.

        Raises:
            RefusedError: the model is the bare base, or does not give one answer for a row.
            UsageError: the adapter has no such form, or packages are missing here.
        """
        adapter = await self._find(model)
        if adapter is None or adapter.kind.model.auto_class != _HEADED:
            what = "the bare base" if adapter is None else f"of kind {adapter.manifest.task.kind}"
            raise RefusedError(400, f"It must give one answer for a row, but {model} is {what}.", "model")
        if (known := self._known(adapter.digest)) is not None:
            return known
        async with self._exporting:
            if (known := self._known(adapter.digest)) is not None:  # another request was quicker
                return known
            paths, about = await asyncio.to_thread(_exported, adapter)
            (asked,) = await self._run(request, [_example(adapter)])
            self._exports[adapter.digest] = export = _Export(paths, about | asked)
            for digest in list(self._exports)[:-_MOST_KEPT]:
                del self._exports[digest]
        return export

    def _known(self, digest: str) -> _Export | None:
        export = self._exports.get(digest)
        return export if export is not None and export.is_whole else None


def _unless_known(request: Request, headers: dict[str, str]) -> Response | None:
    """Return the answer to a client that has this very content."""
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return Response(status_code=304, headers=headers) if headers["etag"] in known else None


def _exported(adapter: ServedAdapter) -> tuple[dict[str, Path], Json]:
    folder = converted_elsewhere(adapter.folder, "onnx")
    about = json.loads((folder / _ABOUT).read_bytes())
    digests = {name: about["model"]["sha256"] if name == _GRAPH else _sha256(folder / name) for name in _FILES}
    task = {name: about[name] for name in ("labels", "columns", "max_length", "token_inputs", "row_inputs")}
    base = {"base_model": about["base_model"], "base_digest": about["base_digest"]}
    about = {"digest": adapter.digest, **base, "files": digests, **task}
    return {digest: folder / name for name, digest in digests.items()}, about


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except FileNotFoundError as error:
        raise UsageError(
            f"What computes elsewhere must have a {path.name}, but this adapter's export has none.",
            hint="ask /classify",
        ) from error


# ---- how a text is read ----------------------------------------------------------------------------------------------
def _example(adapter: ServedAdapter) -> Job:
    """Return the job that says how texts become tokens, with examples: odd, short, whose answer is given, and cut."""
    kind = adapter.kind
    short = tuple(f"{_EXAMPLE}{name}" for name in kind.question_columns)
    long = tuple(text * (kind.task.max_length // 8 + 1) for text in short)
    texts = [(_ODD_EXAMPLE,) * len(short), short, long]

    def ask(source: RowSource) -> RequestGenerator[Json]:
        encoded = encode(kind, source.tokenizer, texts)
        _, answer, _ = yield from kind.predict(source, encoded, [kind.shown(row) for row in texts])
        probs = None if answer.probabilities is None else list(answer.probabilities.values())
        rows = [{"texts": row, "input_ids": encoded.ids.row(number).tolist()} for number, row in enumerate(texts)]
        return {**reading(kind, source.tokenizer), "examples": rows, "answer": {"score": answer.score, "probs": probs}}

    return Job(adapter, len(texts), ask)


def reading(kind: TaskKind, tokenizer: PreTrainedTokenizerBase) -> Json:
    """Return what stands around and between the tokens of texts, and where these are cut.

    A template is a list of [token, type]; in place of a token, `a` and `b` are the first text and the second.
    """
    pair, add = kind.task.text_pair is not None, tokenizer.num_special_tokens_to_add
    encoding = tokenizer("a", "a" if pair else None, return_token_type_ids=True)
    template: list[list[Any]] = []
    for token, kept, text in zip(
        encoding["input_ids"], encoding["token_type_ids"], encoding.sequence_ids(), strict=True
    ):
        part = [token if text is None else "ab"[text], kept]
        if text is None or template[-1:] != [part]:
            template.append(part)
    separator = kind.task.settings.get("pair_separator", "") if pair and add(pair=True) == add(pair=False) else ""
    return {"template": template, "separator": separator, "truncation_side": tokenizer.truncation_side}

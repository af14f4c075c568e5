"""A LoRA-XS classifier or regression for onnxruntime: the base as a graph, the adapter as a few of its inputs.

`model.onnx` has the base with A and B of each layer. C = scale * R with the singular values, and the head, are inputs
of each row, in `adapter.safetensors`. So one `model.onnx` serves all adapters whose `onnx.json` has its digest.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from loraxs_search.errors import UsageError, extra_hint
from loraxs_search.home import disk_faults, file_sha256, write_atomic
from loraxs_search.manifest import Manifest
from loraxs_search.methods._base import ADAPTER, ROOT, Method, R
from loraxs_search.methods._peft import unloaded
from loraxs_search.methods.export._base import ExportFormat, ExportOptions, LoadedAdapter, OnnxPrecision
from loraxs_search.tasks.asking import asking_notes
from loraxs_search.tasks.kinds import kind_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from loraxs_search.methods.export._onnx_graph import RowGraph
    from loraxs_search.methods.loraxs import LoraXSConfig

MODEL, ADAPTER_FILE, ABOUT = "model.onnx", "adapter.safetensors", "onnx.json"
MOST_MOVED = 0.05
"""How far int8 may move a probability; a number by so much of the largest one, or of 1. Measured: 0.023."""


def _onnx_page(manifest: Manifest, precision: OnnxPrecision | None) -> str:
    """Return README.md: what the files are, and the code that asks them."""
    task = manifest.task
    texts = f'"{task.text}"' if task.text_pair is None else f'("{task.text}", "{task.text_pair}")'
    answer = "the label's is the largest" if task.labels else "the first one is the number"
    kind = kind_of(task)
    answer = answer if kind.is_exclusive else "each label's is that of its own probability"
    stored = "In float32."
    if precision is not None:
        stored = f"It computes in float32; matrices are stored as {precision}, which moves answers by {MOST_MOVED:g} at"
        stored += " most on a few sentences."
    return f"""# {task.registered_name}

A LoRA-XS adapter for `{manifest.base_model.id}`, for any ONNX runtime. {stored}

- `{MODEL}`: the base, with the frozen A and B of each layer. The same for all adapters whose `{ABOUT}` has its sha256.
- `{ADAPTER_FILE}`: what a row brings, each without its first axis: `cores` (C = scale * R with the singular values, for
  each layer), `num_labels`, and the head.
- `{ABOUT}`: labels, max_length, names of inputs. Tokenizer: the other files.

```python
import hashlib, json, pathlib
import numpy as np, onnxruntime, transformers
from safetensors.numpy import load_file

about = json.loads(pathlib.Path("{ABOUT}").read_bytes())
digest = hashlib.sha256(pathlib.Path("{MODEL}").read_bytes()).hexdigest()
assert digest == about["model"]["sha256"], "the adapter is of another graph"
session = onnxruntime.InferenceSession("{MODEL}")
tokenizer = transformers.AutoTokenizer.from_pretrained(".", padding_side=about["padding_side"])
adapter = load_file("{ADAPTER_FILE}")

def logits(texts, adapters):
    "Each row has its own adapter; smaller ones are filled up with zeros."
    tokens = tokenizer(texts, truncation=True, max_length=about["max_length"], padding=True, return_tensors="np")
    inputs = {{name: tokens[name].astype(np.int64) for name in about["token_inputs"]}}
    for name in about["row_inputs"]:
        values = [adapter[name] for adapter in adapters]
        widest = np.max([value.shape for value in values], axis=0)
        filled = [np.pad(v, [(0, most - size) for most, size in zip(widest, v.shape)]) for v in values]
        inputs[name] = np.stack(filled)
    return session.run(None, inputs)[0]

texts = [{texts}]
print(logits(texts, [adapter] * len(texts)))
```

Of a row's logits, {answer}; beyond its row's `num_labels` they are -inf. Rows may bring adapters of other tasks, whose
`max_length` may differ.{asking_notes(kind)}
"""


_EXTRA = ("onnx", "onnxscript", "onnxruntime")
_TOKENS = ("input_ids", "attention_mask", "token_type_ids")
_SENTENCES = (
    "a moving, funny film",
    "two hours I will never get back",
    "Is the meeting in Paris still on Tuesday?",
    "12 of 40 parts arrived damaged, and nobody answers the phone.",
    "Das Publikum war begeistert, die Kritik nicht.",
    "Anna Berg of Northwind joined the board in Geneva on 3 May.",
)


class ONNX(ExportFormat):
    """Of LoRA-XS adapters of the basis `top` with a head that answers for a row."""

    name: ClassVar[str] = "onnx"
    options: ClassVar[frozenset[str]] = frozenset({"precision"})
    layout: ClassVar[int] = 4

    @classmethod
    def fits(cls, method: Method) -> bool:
        return method.serves_in_bank

    def write(self, adapter: LoadedAdapter, folder: Path, options: ExportOptions) -> None:
        import torch
        from safetensors.torch import save

        from loraxs_search.base_model.reading import pooling_of
        from loraxs_search.methods.loading import tolerance

        manifest, task, precision = adapter.manifest, adapter.manifest.task, options.precision
        if missing := [name for name in _EXTRA if importlib.util.find_spec(name) is None]:
            raise UsageError(
                f"`--format onnx` must have {', '.join(_EXTRA)}, but {missing[0]} is not installed here.",
                hint=extra_hint("onnx"),
            )
        if kind_of(task).model.auto_class != "AutoModelForSequenceClassification":
            raise UsageError(
                f"`--format onnx` must be of an adapter whose head answers for a whole row, but {task.registered_name}"
                f" is of kind {task.kind}.",
                hint="use --format merged, and an exporter of your own; other kinds may follow later",
            )
        config = cast("LoraXSConfig", adapter.peft.active_peft_config)  # of the one method that banks serve
        if config.basis != "top":
            raise UsageError(
                "`--format onnx` must be of an adapter of `basis: top`, since A and B of that are in the graph which"
                f" all adapters share, but this one has basis {config.basis}.",
                hint="use --format lora or merged, or search with `basis: top`",
            )
        pairs = _factor_pairs(adapter, config)
        inputs = _inputs(adapter, list(pairs))
        tokens = [name for name in _TOKENS if name in (*_TOKENS[:2], *adapter.tokenizer.model_input_names)]
        pooling = pooling_of(adapter.base)
        exactness = tolerance(adapter.peft)  # of a half-precision base, whose A and B PEFT rounds
        limit = {"truncation": True, "max_length": task.max_length}
        encoded = adapter.tokenizer(list(_SENTENCES), padding=True, return_tensors="pt", **limit)
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        with torch.no_grad():
            asked = ids, mask, cast("Any", adapter.peft).float().eval()(input_ids=ids, attention_mask=mask).logits
        model = cast("Any", unloaded(adapter.base)).float()
        write_atomic(folder / MODEL, _graph(model, pairs, inputs, tokens, manifest, precision))
        _check_answers(folder / MODEL, inputs, manifest, asked, precision, exactness)
        write_atomic(folder / ADAPTER_FILE, save(inputs, {"format": "pt"}))
        about = {
            "task": task.registered_name,
            "kind": task.kind,
            "base_model": manifest.base_model.id,
            "base_digest": manifest.base_digest,
            "labels": list(task.labels),
            "columns": [name for name in (task.text, task.text_pair) if name],
            "max_length": task.max_length,
            "padding_side": adapter.tokenizer.padding_side,
            "precision": precision or "float32",
            "pooling": pooling,
            "token_inputs": tokens,
            "row_inputs": list(inputs),
            "model": {"sha256": file_sha256(folder / MODEL)},
        }
        write_atomic(folder / ABOUT, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        adapter.tokenizer.save_pretrained(str(folder))
        write_atomic(folder / "README.md", _onnx_page(manifest, precision))


# ---- the graph -------------------------------------------------------------------------------------------------------
def _factor_pairs(adapter: LoadedAdapter, config: LoraXSConfig) -> dict[str, tuple[Tensor, Tensor]]:
    """Return A (k, in) and B (out, k) of each layer that may be adapted; beyond a layer's own sides they are zero."""
    from torch.nn.functional import pad

    from loraxs_search.base_model.layers import linear_modules, matrix
    from loraxs_search.base_model.locate import locate
    from loraxs_search.base_model.sharing import probe_sharing
    from loraxs_search.factors.compute import resolve_driver
    from loraxs_search.methods.loraxs import LoraXSLinear, checked_factors, current_factor_store

    base, ref = adapter.base, adapter.manifest.base_model
    modules = linear_modules(locate(ref), kind_of(adapter.manifest.task).model)
    sharing = probe_sharing(base, tuple(module.name for module in modules))
    sharing.check("Rows of an ONNX graph", "use --format lora or merged")
    layers = {m.name: base.get_submodule(m.name) for m in modules if m.name not in sharing.unpackable}
    adapted = {name: layer.settings[ADAPTER] for name, layer in base.named_modules() if isinstance(layer, LoraXSLinear)}
    if wrong := [name for name in adapted if name not in layers]:
        raise UsageError(
            "`--format onnx` must be of an adapter of layers in the blocks of a base, that each row has to itself, but"
            f" {wrong[0]} of {ref.id} is none.",
            hint="use --format lora or merged",
        )
    rank = config.factor_rank or max(own.factor_key.rank for own in adapted.values())
    pairs = {}
    for name, layer in layers.items():
        weight = matrix(cast("Any", layer).get_base_layer() if name in adapted else layer).detach()
        if name in adapted:
            factors, _ = checked_factors(weight, adapted[name], name, config.factor_fingerprints)
        else:
            driver = resolve_driver("auto", config.basis, *weight.shape)
            own_rank = min(rank, *weight.shape)
            factors = current_factor_store().get(weight, rank=own_rank, basis=config.basis, driver=driver)
        a, b = factors.ab(factors.rank, "none")
        pairs[name] = pad(a, (0, 0, 0, rank - factors.rank)), pad(b, (0, rank - factors.rank))
    return pairs


def _inputs(adapter: LoadedAdapter, modules: list[str]) -> dict[str, Tensor]:
    """Return what a row brings: C (m, r, r), zero where a layer is not adapted, number of labels (1,), and the head."""
    import torch
    from peft.utils import get_peft_model_state_dict

    from loraxs_search.methods.export._onnx_graph import CORES, NUM_LABELS
    from loraxs_search.methods.loraxs import LoraXSLinear

    own = {n: layer.core(ADAPTER) for n, layer in adapter.base.named_modules() if isinstance(layer, LoraXSLinear)}
    rank = max(len(core) for core in own.values())
    cores = torch.zeros(len(modules), rank, rank)
    for name, core in own.items():
        cores[modules.index(name), : len(core), : len(core)] = core.detach()
    stored = get_peft_model_state_dict(adapter.peft, save_embedding_layers=False)
    head = {name.removeprefix(ROOT): value for name, value in stored.items() if not name.endswith(f".{R}")}
    num_labels = torch.tensor([adapter.base.config.num_labels])
    return {CORES: cores, NUM_LABELS: num_labels, **{name: head[name].float().contiguous() for name in sorted(head)}}


def _graph(
    model: PreTrainedModel,
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    inputs: Mapping[str, Tensor],
    tokens: list[str],
    manifest: Manifest,
    precision: OnnxPrecision | None,
) -> bytes:
    from torch import nn

    from loraxs_search.methods.export._onnx_graph import CORES, NUM_LABELS, RowGraph

    base, head = manifest.base_model.id, {n: tuple(v.shape) for n, v in inputs.items() if n not in (CORES, NUM_LABELS)}
    for name in head:
        if not isinstance(layer := model.get_submodule(name.rpartition(".")[0]), nn.Linear):
            raise UsageError(
                f"`--format onnx` must be of a trained head of linear layers, but {name} of {base} is of"
                f" {type(layer).__name__}.",
                hint="use --format merged, or search with `head: output`",
            )
    graph: RowGraph = RowGraph(model, pairs, head, tokens)
    try:
        return graph.exported(precision)
    except Exception as error:
        cause = error.__cause__ or error  # the exporter's own is advice
        reason = next(iter(str(cause).strip().splitlines()), "without a word")
        raise UsageError(
            f"torch must be able to export {base} ({type(model).__name__}) to ONNX, but it cannot:"
            f" {type(cause).__name__}: {reason}",
            hint="use --format merged",
        ) from error


def _check_answers(
    path: Path,
    inputs: Mapping[str, Tensor],
    manifest: Manifest,
    asked: tuple[Tensor, Tensor, Tensor],
    precision: OnnxPrecision | None,
    exactness: float,
) -> None:
    """Refuse a file whose answers to a few sentences are too far from the adapter's in float32.

    Args:
        asked: Tokens and mask, (n, T), and the adapter's logits.
        exactness: How far a number may move where matrices are float32, as a share of the largest one, or of 1.
    """
    import numpy as np
    import onnxruntime
    import torch

    from loraxs_search.methods.export._onnx_graph import NUM_LABELS

    ids, mask, expected = asked
    ids, mask = (torch.cat([it, it[:1]]) for it in (ids, mask))  # beside a row without an adapter
    given: dict[str, Any] = dict(zip(_TOKENS, (ids, mask, torch.zeros_like(ids)), strict=True))
    for name, value in inputs.items():
        given[name] = value.expand(len(ids), *value.shape).clone()
        given[name][-1] *= name == NUM_LABELS
    with disk_faults(path):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {each.name: np.ascontiguousarray(given[each.name].numpy()) for each in session.get_inputs()}
    logits, base = torch.from_numpy(session.run(None, feed)[0][:-1]), manifest.base_model.id
    is_exclusive = kind_of(manifest.task).is_exclusive
    what, moved = "a number", float((logits - expected).abs().max() / expected.abs().max().clamp(min=1))
    if precision is None:
        if not moved <= exactness:  # NaN too
            raise UsageError(
                f"An ONNX graph must compute what the adapter does, but that of {base} moves a number by {moved:.3g} in"
                " onnxruntime.",
                hint="use --format merged",
            )
        return
    if manifest.task.labels:
        shares = [it.softmax(-1) if is_exclusive else it.sigmoid() for it in (logits, expected)]
        what, moved = "a probability", float((shares[0] - shares[1]).abs().max())
    if not moved <= MOST_MOVED:
        raise UsageError(
            f"`--precision {precision}` must move {what} by at most {MOST_MOVED:g}, but it moves one by {moved:.3g} on"
            f" {base}.",
            hint="leave --precision out: matrices are float32 then",
        )

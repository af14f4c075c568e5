"""Whether a loaded adapter is the model that was scored: the fingerprint of its base's body, and reference logits.

R has a meaning where the adapted weights are those of the training, which the factors' fingerprints check. The model
is the one that was scored only if embeddings, norms and the other layers are the same too: a few numbers identify them.
The end-to-end check has inputs made by rule, and the logits they must give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from loraxs_search.base_model.reading import end_with_eos
from loraxs_search.errors import BaseModelError
from loraxs_search.factors.store import agrees, fingerprint_of_all
from loraxs_search.records.adapter import ReferenceLogits

if TYPE_CHECKING:  # importing peft imports `methods.loraxs`, which needs this module
    from peft import PeftModel
    from transformers import PreTrainedModel

# Rounding to bfloat16 comes first, so the same checkpoint gives the same numbers up to the order of a sum; loaded in
# float16, one number in sixteen is rounded to another neighbour, which moves them by some 1e-3.
_TOLERANCE, _FLOAT16_TOLERANCE = 1e-4, 1e-2


def body_fingerprint(model: nn.Module) -> tuple[float, ...]:
    """Return three numbers of a sample of the base's own weights below its head, whatever adapters are on it.

    Empty while weights are still on the meta device.
    """
    tensors = _tensors(model)
    return () if any(tensor.is_meta for tensor in tensors) else fingerprint_of_all(tensors)


def check_body(expected: Sequence[float], model: nn.Module) -> None:
    """Refuse a body whose fingerprint differs from the one in an adapter's config.

    Raises:
        BaseModelError: they differ; the message has both.
    """
    if not expected:  # an adapter that no search has made has none
        return
    actual, halved = body_fingerprint(model), any(tensor.dtype == torch.float16 for tensor in _tensors(model))
    if actual and not agrees(expected, actual, tolerance=_FLOAT16_TOLERANCE if halved else _TOLERANCE):
        raise BaseModelError(
            f"The base's body must have the fingerprint {list(expected)}, in which the adapter was trained, "
            f"but got {list(actual)}: its adapted layers are the same, something else below its head is not.",
            hint="load the base that the adapter was trained on, at the same revision, not quantised, and put adapters "
            "on it before it is changed (resized embeddings, merged adapters); to start a new adapter from this config "
            "instead, clear its `body_fingerprint` and `factor_fingerprints`",
        )


def _tensors(model: nn.Module) -> list[Tensor]:
    """Return the body's parameters by name; numbers of a quantised layer are codes, and it is another body anyway."""
    parameters = dict(_own(getattr(model, getattr(model, "base_model_prefix", ""), model), ""))
    return [parameters[name] for name in sorted(parameters) if parameters[name].is_floating_point()]


def _own(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters that `module` had before PEFT wrapped any of its layers, by the names they had then."""
    for wrapped in ("base_layer", "original_module"):
        if isinstance(inner := getattr(module, wrapped, None), nn.Module):
            yield from _own(inner, prefix)
            return
    for name, parameter in module.named_parameters(recurse=False):
        yield f"{prefix}{name}", parameter
    for name, child in module.named_children():
        yield from _own(child, f"{prefix}{name}.")


NUM_ROWS = 4
NUM_TOKENS = 12
_NUM_LOGITS = 64
_WHOLE, _HALF = 1e-4, 2e-1  # of the largest logit, or of 1; in bfloat16, attention kernels themselves make 0.05


def make_reference_logits(model: PeftModel | PreTrainedModel, vocab_size: int) -> ReferenceLogits:
    """Return the reference logits of a model: 4 rows of 12 tokens by a fixed rule, and their logits.

    Args:
        model: The base in its checkpoint's precision, with an adapter on it.
        vocab_size: Rows of the base's embedding; tokens come from its upper half, away from special tokens.
    """
    low = vocab_size // 2
    tokens = [
        [low + (37 * row + 13 * column + 7 * row * column) % (vocab_size - low) for column in range(NUM_TOKENS)]
        for row in range(NUM_ROWS)
    ]
    input_ids = tuple(tuple(row) for row in end_with_eos(torch.tensor(tokens), model.config).tolist())
    logits = reference_logits(model, input_ids)  # (rows, labels)
    return ReferenceLogits(input_ids=input_ids, logits=tuple(tuple(row) for row in logits.tolist()))


def tolerance(model: nn.Module) -> float:
    """Return by how much the logits of another machine may differ: in half precision, kernels round each layer."""
    return _HALF if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()) else _WHOLE


def compare_reference_logits(actual: Tensor, reference: ReferenceLogits, atol: float = _WHOLE) -> None:
    """Raise unless logits, as a model gives them, are the reference within `atol`.

    Where logits are larger than 1, so is what rounding makes of them (a language model's of 29: 2e-4 in float32), and
    the difference is held against the largest of them.

    Raises:
        BaseModelError: logits differ, are not finite, or are of another shape.
    """
    actual, expected = _kept(actual), torch.tensor(reference.logits, dtype=torch.float32)
    if actual.shape != expected.shape:
        difference = f"shape {tuple(actual.shape)} where the adapter has {tuple(expected.shape)}"
    elif not (distance := (actual - expected).abs().max()) <= atol * max(1.0, float(expected.abs().max())):  # NaN too
        difference = f"a difference of {float(distance):.3g}"
    else:
        return
    raise BaseModelError(
        f"Logits of the probe must agree within {atol:g}, but got {difference}.",
        hint="the base model, its factors or the adapter's files are not those of the training; pull it again",
    )


def _kept(logits: Tensor) -> Tensor:
    """Return those of logits that are compared: all of one output a row, (rows, labels).

    Of logits of each token, (rows, T, vocabulary), a few of each row's last one. Each of them depends on the whole
    hidden state, so a few tell as much; manifests stay small.
    """
    return logits[:, -1, :_NUM_LOGITS] if logits.dim() == 3 else logits


@torch.no_grad()
def reference_logits(model: PeftModel | PreTrainedModel, input_ids: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return a model's logits of a reference's rows, float32, on the CPU; row by row: not every model has padding."""
    was_training = model.training
    model.eval()
    try:
        rows = torch.tensor(input_ids, device=model.device)[:, None]  # (rows, 1, tokens)
        with torch.autocast(model.device.type, enabled=False):
            logits = torch.cat([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in rows])
            return _kept(logits).float().cpu()
    finally:
        model.train(was_training)

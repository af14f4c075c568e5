"""The linear probe of a base: the best output layer of its head before anything else is trained (LP-FT).

Source: Kumar et al. 2022, arXiv 2202.10054; differs in that the probe is fitted to a part of the train rows.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.layers import head_names, output_head
from loraxs_search.records.adapter import LinearProbe
from loraxs_search.tasks.encoded import Batch, eval_batches
from loraxs_search.tasks.kinds import PassOutputs, TaskKind
from loraxs_search.tasks.prepared import PreparedTask, fixed_subset

_LEAST_ROWS, _MAX_ROWS, _MAX_READS = 10, 2000, 20_000
# Products of numbers in passes over the base, and not seconds: the same rows are read on every machine.
_CPU_PRODUCTS, _ACCELERATOR_PRODUCTS = 8e11, 1e15
_CPU_TOKENS, _ACCELERATOR_TOKENS = 1024, 8192  # of a pass
_PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)  # of half the squared norm, strongest first
_HELD_OUT = 5  # every fifth row chooses among them
_ITERATIONS = 50
_LEAST_SPREAD = 0.01  # of the mean spread: an input that hardly varies gets no large weight


def fit_linear_probe(data: PreparedTask, model: PreTrainedModel) -> LinearProbe:
    """Fit the output layer of a head on the untouched base.

    It minimises the task's own loss with a penalty on the squared norm over standardised inputs; rows that are held out
    choose the penalty. How many rows it reads follows from their lengths and the base's size: on one core with bfloat16
    they take some eight seconds at most.

    Args:
        model: The base as it was loaded, with nothing on it. Its head's own numbers are not read.
    """
    if not head_names(model):
        return LinearProbe(reason="the task has no head")
    name, before = output_head(model)
    if before:
        return LinearProbe(reason=f"{before[-1]}, the layer before the head's output, has no numbers yet")
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    started = time.perf_counter()
    x_MD, rows = _head_inputs(data, model, layer)
    if (num_read := len(rows.counts)) < _LEAST_ROWS:
        is_all = num_read == data.num_rows("train")
        why = f"there are {num_read}" if is_all else f"{num_read} are read, since the base or the rows are large"
        return LinearProbe(reason=f"it needs {_LEAST_ROWS} train rows, but {why}")
    fitted = _fit(data.kind, x_MD, rows, has_bias=layer.bias is not None)
    if not all(bool(value.isfinite().all()) for value in fitted.values()):
        return LinearProbe(reason="the base's numbers are not finite")
    content = save({f"{name}.{key}": value.contiguous() for key, value in sorted(fitted.items())})
    return LinearProbe(content, len(rows.counts), time.perf_counter() - started)


# ---- inputs ----------------------------------------------------------------------------------------------------------
def _head_inputs(data: PreparedTask, model: PreTrainedModel, layer: nn.Module) -> tuple[Tensor, Batch]:
    """Return what the layer gets for train rows, (M, width) float32 on the CPU, and these rows without their tokens."""
    seen: list[Tensor] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
        """Keep the inputs. The output becomes its own position: so models that pick one of many show which it was."""
        seen.append(inputs[0].detach().float().cpu())
        positions = torch.arange(outputs.shape[1], device=outputs.device, dtype=torch.float32)
        return outputs if outputs.dim() == 2 else positions[None, :, None].expand(outputs.shape)

    on_cpu = model.device.type == "cpu"
    order = np.random.default_rng(0).permutation(fixed_subset(data.num_rows("train"), _MAX_ROWS))  # always the same
    reads = np.cumsum(data.encoded("train").counts(order))
    matrices = [module for module in model.modules() if not isinstance(module, nn.Embedding)]
    per_token = sum(own.numel() for each in matrices for own in each.parameters(recurse=False) if own.dim() == 2)
    products = np.cumsum(data.lengths("train")[order]) * float(per_token)
    most = _CPU_PRODUCTS if on_cpu else _ACCELERATOR_PRODUCTS
    rows: npt.NDArray[np.int64] = order[: max(1, int(((reads <= _MAX_READS) & (products <= most)).sum()))]
    parts, batches = list[Tensor](), list[Batch]()
    with layer.register_forward_hook(look), torch.inference_mode():
        for chosen in eval_batches(data.lengths("train")[rows], _CPU_TOKENS if on_cpu else _ACCELERATOR_TOKENS):
            batch = data.collate("train", rows[chosen])
            inputs = {key: value.to(model.device) for key, value in batch.inputs.items()}
            picked = model(**inputs).logits
            x, positions = seen.pop(), picked.float().cpu()
            if batch.reads is not None:
                x = x[batch.reads[:, 0], batch.reads[:, 1]]
            parts.append(x if x.dim() == 2 else x[torch.arange(len(x)), positions[:, 0].long()])
            batches.append(batch)
    targets, counts = (torch.cat([getattr(batch, key) for batch in batches]) for key in ("targets", "counts"))
    return torch.cat(parts), replace(batches[0], inputs={}, counts=counts, reads=None, targets=targets)


# ---- the fit ---------------------------------------------------------------------------------------------------------
def _fit(kind: TaskKind, x_MD: Tensor, rows: Batch, *, has_bias: bool) -> dict[str, Tensor]:
    """Return weight and bias of the best layer.

    Args:
        x_MD: What the layer gets at each read.
        rows: Whose reads they are, n rows with M targets.
    """
    num_outputs = kind.model.num_outputs
    assert num_outputs is not None
    mean_D = x_MD.mean(0) if has_bias else torch.zeros(x_MD.shape[1])
    spread_D = (x_MD - mean_D).square().mean(0).sqrt()
    spread_D = spread_D.clamp(min=_LEAST_SPREAD * float(spread_D.mean()))
    z_MD = (x_MD - mean_D) / spread_D
    weight_OD = torch.zeros(num_outputs, x_MD.shape[1], requires_grad=True)
    bias_O = torch.zeros(num_outputs, requires_grad=has_bias)
    held_n = (torch.arange(len(rows.counts)) % _HELD_OUT == 0).float()

    def mean_loss(chosen_n: Tensor) -> Tensor:
        """Return the mean of the task's loss over the reads of the chosen rows."""
        losses_n = kind.loss(PassOutputs(z_MD @ weight_OD.T + bias_O), rows)
        return (losses_n * chosen_n).sum() / (rows.counts * chosen_n).sum().clamp(min=1)

    def minimise(penalty: float, chosen_n: Tensor) -> None:
        tensors = [weight_OD, *([bias_O] if has_bias else [])]
        lbfgs = torch.optim.LBFGS(tensors, max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            lbfgs.zero_grad()
            value = mean_loss(chosen_n) + 0.5 * penalty * weight_OD.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        lbfgs.step(closure)  # type: ignore[no-untyped-call]

    best, best_loss = _PENALTIES[0], float("inf")
    for penalty in _PENALTIES:
        minimise(penalty, 1 - held_n)
        with torch.no_grad():
            loss = float(mean_loss(held_n))
        if not loss < best_loss:
            break
        best, best_loss = penalty, loss
    minimise(best, torch.ones_like(held_n))
    weight = weight_OD.detach() / spread_D
    return {"weight": weight} | ({"bias": bias_O.detach() - weight @ mean_D} if has_bias else {})

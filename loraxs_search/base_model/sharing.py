"""Whether rows of different trials, or adapters, may share a pass over a base: what was not seen to be safe is not.

Made-up rows tell, n = 3 of T = 7. Sharing a pass changes for a row its company and its padding, how far that goes and
what the base makes of it. Neither may change what the row gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.layers import head_names
from loraxs_search.base_model.packable import Sharing
from loraxs_search.base_model.reading import close_to, dummy_inputs, readable, rounding
from loraxs_search.base_model.tokenizer import padding_side

_ROWS, _WIDTH, _WIDER = 3, 7, 20
_FEWER = [2, 0]  # rows of other batches
_EXACT = 1e-4  # the same shapes are computed the same in any precision
_HALF_STATES = 5e-2  # what rounding makes of a half-precision body's states when shapes change


@dataclass
class _Seen:
    """What was seen of a pass.

    Args:
        inputs: Of layers and heads by name, call by call.
        crowded: Those that are given more than one tensor.
        states: What leaves the body, zero at padding, (n, T, width); None if that is not its shape.
        readable: What tasks may read.
    """

    inputs: dict[str, list[Tensor]]
    crowded: set[str] = field(default_factory=set)
    states: Tensor | None = None
    readable: Tensor = field(default_factory=lambda: torch.empty(0))


@torch.no_grad()
def probe_sharing(model: PreTrainedModel, names: Collection[str]) -> Sharing:
    """Compute made-up rows, fewer of them in another order, and these with more and other padding; and compare.

    DeBERTa gives some layers embeddings of positions, which all rows share; XLNet and Longformer put tokens before
    rows; an expert is given a few tokens of each row; some layers are not called at all.

    Args:
        model: The base as it was loaded, its head included; float32 tells more than half precision.
        names: Linear layers that may be adapted.
    """
    heads, limit = head_names(model), rounding(model)
    is_exact = limit <= _EXACT
    try:
        first = _look(model, dummy_inputs(model, _ROWS), [*names, *heads])
        few = {name: value[_FEWER] for name, value in dummy_inputs(model, _ROWS).items()}
        company = _look(model, few, [*names, *heads])
        with _other_padding(model) as changed:
            few = {name: value[_FEWER] for name, value in dummy_inputs(model, _ROWS, _WIDER).items()}
            wider = _look(model, few)
            # In half precision other shapes round: only the same ones tell what a head makes of padding.
            same = first if is_exact else _look(model, dummy_inputs(model, _ROWS))
    except Exception as error:  # noqa: BLE001  # whatever a foreign base does: nothing is known of it
        reason = next(iter(str(error).strip().splitlines()), "without a word")
        return Sharing(f"it takes no made-up rows ({type(error).__name__}: {reason})", frozenset(names))

    def gave_the_same(fewer: _Seen) -> bool:
        """Whether fewer rows gave what they gave in the first pass; in half precision states tell more."""
        if is_exact and first.readable.dim() == 2:  # a head's, whose padding no one sees
            return close_to(fewer.readable, first.readable[_FEWER], _EXACT)
        if fewer.states is None or first.states is None:
            return False
        real = slice(-_WIDTH, None) if padding_side(model.config) == "left" else slice(_WIDTH)
        return close_to(fewer.states[:, real], first.states[_FEWER], _EXACT if is_exact else _HALF_STATES)

    unpackable = frozenset(n for n in names if not _are_rows(first.inputs[n], company.inputs[n], limit, least_dim=3))
    strange = [n for n in heads if n in first.crowded or not _are_rows(first.inputs[n], company.inputs[n], limit, 2)]
    is_fine = {
        "what a row gives depends on the rows beside it": gave_the_same(company),
        "what a row gives depends on its padding": bool(changed)
        and gave_the_same(wider)
        and close_to(same.readable, first.readable, _EXACT),
        f"its head {next(iter(strange), '')} is given something else than the batch's rows": not strange,
    }
    return Sharing(next((fault for fault, fine in is_fine.items() if not fine), ""), unpackable)


def _look(model: PreTrainedModel, inputs: dict[str, Tensor], names: Sequence[str] = ()) -> _Seen:
    seen = _Seen({name: [] for name in names})

    def look_at(name: str) -> Any:
        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.inputs[name].append(args[0])
            if any(isinstance(value, Tensor) for value in (*args[1:], *kwargs.values())):
                seen.crowded.add(name)

        return look

    def leave(_: nn.Module, __: Any, out: Any) -> None:
        states, mask = out[0], inputs["attention_mask"]
        seen.states = states * mask[..., None] if states.shape[:-1] == mask.shape else None

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(look_at(name), with_kwargs=True))
        hooks.enter_context(model.base_model.register_forward_hook(leave))
        seen.readable = readable(model, inputs)
    return seen


@contextmanager
def _other_padding(model: PreTrainedModel) -> Iterator[list[int]]:
    """Look up for padding what other tokens have; yield how many positions each lookup changed."""
    weight, config = model.get_input_embeddings().weight, model.config
    changed: list[int] = []

    def change(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        is_padding = args[0] == config.pad_token_id
        if config.is_encoder_decoder:
            is_padding[:, 0] = False  # T5's decoder begins with this token
        num, real = int(is_padding.sum()), out[~is_padding]
        changed.append(num)
        out = out.clone()
        out[is_padding] = real[torch.arange(num, device=out.device) % len(real)]
        return out

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.weight is weight:
                hooks.enter_context(module.register_forward_hook(change))
        yield changed


def _are_rows(first: Sequence[Tensor], company: Sequence[Tensor], limit: float, least_dim: int) -> bool:
    """Return whether each call got all positions of the batch, row after row, and each row the same in both batches.

    Args:
        least_dim: 3 where (n, width) may be any n positions, 2 where it is what was pooled of each row.
    """
    if not first or len(first) != len(company):
        return False

    def by_row(x: Tensor, num_rows: int) -> Tensor | None:
        whole = x[..., 0].numel() == num_rows * _WIDTH
        return x.reshape(num_rows, -1) if whole or (x.dim() >= least_dim and len(x) == num_rows) else None

    for x, y in zip(first, company, strict=True):
        mine, others = by_row(x, _ROWS), by_row(y, len(_FEWER))
        if mine is None or others is None or mine.shape[1] != others.shape[1]:
            return False
        if not (others - mine[_FEWER]).norm() <= limit * others.norm():
            return False
    return True

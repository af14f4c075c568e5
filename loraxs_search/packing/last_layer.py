"""Prunes the topmost layer to what the head reads: BERT's heads read only the first token of each row.

Attention still reads every token; what follows it in that layer is computed for the first token only. The numbers are
those of the whole layer, gradients too, since nothing else of it reaches the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from loraxs_search.base_model import close_to, dummy_inputs, readable, rounding

_Change = Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]


class LastLayerPruning:
    """Cuts the topmost layer's states to the first token of each row, right behind its attention.

    A probe finds that module and checks that cutting changes nothing. Where it does, or there is no such module
    (decoders read the last token), nothing is cut.

    Args:
        model: The base as it was loaded.
        layers: Its repeated layers; None when it has no such list.
    """

    def __init__(self, model: PreTrainedModel, layers: nn.ModuleList | None) -> None:
        self._handle: RemovableHandle | None = None
        self._joint = _prunable_joint(model, layers[-1]) if layers is not None else None

    @property
    def cuts(self) -> bool:
        """Whether a pass of this base is cut while the pruning is in place."""
        return self._joint is not None

    def place(self) -> None:
        """Cut passes from now on."""
        if self._joint is not None and self._handle is None:
            self._handle = self._joint.register_forward_pre_hook(_first_tokens)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Cut passes for a while."""
        self.place()
        try:
            yield
        finally:
            self.remove()

    def remove(self) -> None:
        """Compute the whole layer again."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


@torch.no_grad()
def _prunable_joint(model: PreTrainedModel, layer: nn.Module) -> nn.Module | None:
    """Return the module whose inputs can be cut; None where that would change what the base computes."""
    try:
        inputs = dummy_inputs(model)
        whole, joint = _find_joint(model, layer, inputs)
        # First with the other tokens blotted out: a head that reads one of them would ask a GPU for what is not there.
        sound = joint is not None and all(
            close_to(_readable_with(model, joint, change, inputs), whole, rounding(model))
            for change in (_blot, _first_tokens)
        )
    except Exception:  # noqa: BLE001  # whatever a foreign base does: its layer is computed whole
        return None
    return joint if sound else None


def _find_joint(model: PreTrainedModel, layer: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, nn.Module | None]:
    """Return what tasks may read, and the first module given two tensors alike: attention's output and residual."""
    joints: list[nn.Module] = []

    def look(module: nn.Module, args: tuple[Any, ...]) -> None:
        if len(args) == 2 and all(isinstance(arg, Tensor) and arg.dim() == 3 for arg in args):
            joints.extend([module] if args[0].shape == args[1].shape else [])

    with ExitStack() as hooks:
        for module in layer.modules():
            hooks.enter_context(module.register_forward_pre_hook(look))
        whole = readable(model, inputs)
    return whole, joints[0] if joints else None


def _readable_with(model: PreTrainedModel, module: nn.Module, change: _Change, inputs: dict[str, Tensor]) -> Tensor:
    with module.register_forward_pre_hook(change):
        return readable(model, inputs)


def _first_tokens(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor[:, :1].contiguous() for tensor in states)


def _blot(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Leave of each row the first token alone, and zeros."""
    return tuple(torch.cat([tensor[:, :1], torch.zeros_like(tensor[:, 1:])], dim=1) for tensor in states)

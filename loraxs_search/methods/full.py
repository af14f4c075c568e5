"""Full fine-tuning: every weight of the base is trained, the baseline of what adapters save.

The base is shared, so a trial trains a copy of it, in float32, whatever the base is held in: small steps would be lost
in bfloat16.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, cast

from loraxs_search.errors import UsageError
from loraxs_search.methods._base import HeadPlan, Method
from loraxs_search.methods._names import Shapes, file_bytes
from loraxs_search.records import AdapterSize, Hyperparameters, LinearModule, Scalar

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from loraxs_search.factors import FactorStore

_BASE = "_trained_copy_of"  # in a copy's own dictionary: as a submodule the base would be in its state
_BYTES_PER_NUMBER = 16  # weight, gradient and AdamW's two moments, in float32


class Full(Method):
    """Every weight of the base, in a copy in float32, to compare with. Only metrics are recorded; never a candidate.

    A tied weight is one; poolers that the checkpoint lacks stay as they are.
    """

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "Full fine-tuning"
    symbol: ClassVar[str] = "weights"
    description: ClassVar[str] = "all weights of the base"
    is_baseline: ClassVar[bool] = True
    has_adapter: ClassVar[bool] = False
    adapts_layers: ClassVar[bool] = False
    advice: ClassVar[str] = (
        "trains a copy of the base: 16 bytes of its device's memory for each number of the base, and for as long as a "
        "trial runs 12 on its node's disk; only its metrics are recorded"
    )

    def size(
        self,
        params: Mapping[str, Scalar],
        modules: Sequence[LinearModule],
        head: Shapes,
        identity: Shapes,
        body: Shapes = MappingProxyType({}),
    ) -> AdapterSize:
        own, heads = (sum(map(prod, shapes.values())) for shapes in (body, head))
        return AdapterSize(own, heads, file_bytes({**body, **head}, root=""))

    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PreTrainedModel:
        """Return a copy of the base, all of it trained; the base itself stays as it is.

        Raises:
            UsageError: the device's free memory cannot hold what its training takes.
        """
        _check_memory(model)
        trained = cast("PreTrainedModel", copy.deepcopy(model).float())
        trained.__dict__[_BASE] = model
        trained.requires_grad_(True)
        for name in head.identity:
            trained.get_submodule(name).requires_grad_(False)
        return trained

    def detach(self, model: PeftModel | PreTrainedModel) -> PreTrainedModel:
        return cast("PreTrainedModel", model.__dict__[_BASE])

    def is_adapter(self, name: str, model: PeftModel | PreTrainedModel) -> bool:
        from loraxs_search.base_model import head_names

        return name.split(".", maxsplit=1)[0] not in head_names(cast("PreTrainedModel", model))

    def measure(self, model: PeftModel | PreTrainedModel) -> AdapterSize:
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        own = {name: shape for name, shape in shapes.items() if self.is_adapter(name, model)}
        head = {name: shape for name, shape in shapes.items() if name not in own}
        return self.size({}, (), head, {}, own)


def _check_memory(model: PreTrainedModel) -> None:
    from loraxs_search.memory import free_bytes

    needed = _BYTES_PER_NUMBER * sum(parameter.numel() for parameter in model.parameters())
    free = free_bytes(model.device)
    if needed > free:
        raise UsageError(
            f"`method: full` must have the memory for a copy of the base in training, but {needed / 2**30:.1f} GiB are "
            f"needed and {free / 2**30:.1f} GiB of {model.device} are free.",
            hint="use a device with more memory or a smaller base, or leave the method out",
        )

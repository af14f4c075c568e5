"""The head alone: what the base's own features are worth to a trained head, before any adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.methods._base import HeadPlan
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.records import Hyperparameters

if TYPE_CHECKING:
    from peft import LoraConfig


class HeadOnly(PeftMethod):
    """The head alone, to compare with: no candidate unless `promotion.methods` names it.

    `head_learning_rate` is its one learning rate. To PEFT it is a LoRA of no layer, with a head.
    """

    name: ClassVar[str] = "head-only"
    title: ClassVar[str] = "Head only"
    description: ClassVar[str] = "adapter (none: the base is untouched)"
    is_baseline: ClassVar[bool] = True
    adapts_layers: ClassVar[bool] = False
    needs_head: ClassVar[bool] = True

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> LoraConfig:
        from peft import LoraConfig

        return LoraConfig(**attachment)

    def attachment(self, hyper: Hyperparameters, head: HeadPlan) -> dict[str, Any]:
        from peft.utils.constants import DUMMY_TARGET_MODULES

        return super().attachment(hyper, head) | {"target_modules": DUMMY_TARGET_MODULES}

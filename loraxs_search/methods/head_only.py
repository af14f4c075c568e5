"""The head alone: what the base's own features are worth to a trained head, before any adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.errors import UsageError
from loraxs_search.methods._base import HeadPlan
from loraxs_search.methods._names import Shapes
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.records import Hyperparameters, LinearModule, Scalar

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

    from loraxs_search.factors import FactorStore


class HeadOnly(PeftMethod):
    """The head alone, to compare with: no candidate unless `promotion.methods` names it.

    `head_learning_rate` is its one learning rate. To PEFT it is a LoRA of no layer, with a head.
    """

    name: ClassVar[str] = "head-only"
    title: ClassVar[str] = "Head only"
    symbol: ClassVar[str] = "adapter"
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

    def stored(self, params: Mapping[str, Scalar], modules: Sequence[LinearModule]) -> Shapes:
        return {}

    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PeftModel:
        if not head.trained:
            raise UsageError(
                "`method: head-only` must be for a task with a head, but this one's base answers by itself.",
                hint="leave the method out",
            )
        return super().attach(model, hyper, head, factors)

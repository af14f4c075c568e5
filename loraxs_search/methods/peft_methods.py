"""Methods without a tuner of our own: configs of PEFT's that a space names, only the head, all weights of the base."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from loraxs_search.errors import UsageError, must_be
from loraxs_search.methods._base import ADAPTER, NONE, HeadPlan, Method, Modules, Params, Shapes, file_bytes
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.plugins import ParameterSpec
from loraxs_search.records.codec import ParameterKind
from loraxs_search.records.trial import AdapterSize, Hyperparameters, PeftSettings

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig, PeftModel
    from transformers import PreTrainedModel

    from loraxs_search.factors.store import FactorStore

_KINDS: dict[str, ParameterKind] = {"int": "int", "float": "float", "bool": "flag", "str": "scalar"}
_LAW = ParameterSpec("float", low=-math.inf, optional=True)  # PEFT's default counts where a trial leaves a field out
_TAKEN = "is set by loraxs-search"
_LAYERS = "must be left out: `target_modules` of `parameters` says which layers are adapted"
_BY_LOOP = "is not searched: PEFT's own training loop must call it at each step"
REFUSED_FIELDS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules"), _LAYERS)
    | dict.fromkeys(("target_parameters", "trainable_token_indices", "layer_replication"), _LAYERS)
    | dict.fromkeys(("modules_to_save", "task_type", "inference_mode", "auto_mapping", "peft_version"), _TAKEN)
    | dict.fromkeys(("base_model_name_or_path", "revision", "fan_in_fan_out"), _TAKEN)
    | {"use_asa": _BY_LOOP}
)
_REFUSED_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "LORAXS": "is `method: lora-xs`",
        "ADALORA": _BY_LOOP,
        "POLY": "needs the number of a task with each row",
        "SHADOW": "returns other outputs than the base",
    }
)


def _peft_types() -> dict[str, type[PeftConfig]]:
    """Return the configs that `peft_methods` can name, by PEFT's names of their types. Imports PEFT."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {
        kind.value: config
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if kind.value not in _REFUSED_TYPES
        and {"target_modules", "modules_to_save"} <= {field.name for field in dataclasses.fields(config)}
    }


def config_fields(peft_type: object) -> dict[str, ParameterSpec | None]:
    """Return the fields of a config that a space may give, each with its law; None for lists and mappings.

    Args:
        peft_type: What a space gives as PEFT's name of a type.
    Raises:
        ValueError: there is none of this name, or it cannot be searched: a `must` sentence.
    """
    from peft import PeftType

    known = _peft_types()
    if not isinstance(peft_type, str) or peft_type not in known:
        if str(peft_type) not in set(PeftType):
            raise ValueError(must_be(peft_type, list(known)))
        reason = _REFUSED_TYPES.get(str(peft_type), "adapts no layers that `target_modules` names")
        raise ValueError(f"must be another type: PEFT's {peft_type} {reason}")
    specs: dict[str, ParameterSpec | None] = {}
    for field in dataclasses.fields(known[peft_type]):
        if field.name in REFUSED_FIELDS or field.name == "peft_type":
            continue
        annotation = str(getattr(field.type, "__name__", field.type))
        plain = re.sub(r"typing\.|Optional\[(.*)\]|\bNone\b|[| ]", r"\1", annotation)
        kind = _KINDS.get(plain, "float" if plain == "Union[int,float]" else "scalar")
        specs[field.name] = None if re.search(r"list|dict|tuple|Config", annotation) else replace(_LAW, kind=kind)
    return specs


class ConfiguredPeft(PeftMethod):
    """A method of PEFT's by its config, under the name that a space gives it in `peft_methods`.

    What PEFT makes again from a seed or from the base's weights is stored where PEFT stores it, and not counted among
    the learnt bytes.
    """

    reads_weights: ClassVar[bool] = True

    def __init__(self, name: str, settings: PeftSettings) -> None:
        self.name, self.settings = name, settings
        self.title = settings.peft_type
        self.parameters = {field: replace(_LAW, kind=kind) for field, kind in settings.searched.items()}
        self.not_offered = dict.fromkeys(
            settings.fixed, f"is fixed by `peft_methods.{name}`: leave it out there to search it."
        )
        self.sized_by = tuple(field for field, kind in settings.searched.items() if kind != "float")

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> PeftConfig:
        return self._config(self.params(hyper), attachment)

    def size(
        self, params: Params, modules: Modules, head: Shapes, identity: Shapes, body: Shapes = NONE
    ) -> AdapterSize:
        """Return what PEFT makes of layers that hold no numbers.

        Raises:
            UsageError: PEFT refuses the config, or these layers.
        """
        from peft import get_peft_model
        from torch import nn

        def built(config: PeftConfig, device: str) -> PeftModel:
            root = nn.Module()
            root.config = {"model_type": "custom"}  # type: ignore[assignment]
            for module in modules:
                *parents, last = module.name.split(".")
                inner = root
                for part in parents:
                    if part not in dict(inner.named_children()):
                        inner.add_module(part, nn.Module())
                    inner = inner.get_submodule(part)
                inner.add_module(last, nn.Linear(module.in_features, module.out_features, device=device))
            return get_peft_model(root, config, adapter_name=ADAPTER, low_cpu_mem_usage=device == "meta")

        with self._built(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = self._config(params, {"target_modules": [module.name for module in modules]})
            try:
                model = built(copy.deepcopy(config), "meta")
            except NotImplementedError:  # PEFT computes with the numbers: any will do
                model = built(config, "cpu")
        stored, learnt = self._stored_and_learnt(model)
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        needed = {name: shape for name, shape in shapes.items() if name in learnt}
        tensors = {**head, **identity}
        return AdapterSize(
            sum(p.numel() for p in model.parameters() if p.requires_grad),
            sum(map(prod, head.values())),
            file_bytes(tensors, shapes),
            None if len(needed) == len(shapes) else file_bytes(tensors, needed),
        )

    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PeftModel:
        """Put the adapter on the base.

        Raises:
            UsageError: PEFT refuses the config or these layers, or would train or change the base's own weights.
        """
        own = list(model.parameters())
        with self._built():
            adapted = super().attach(model, hyper, head, factors)
        if any(parameter.requires_grad for parameter in own):
            self.detach(adapted)
            raise UsageError(
                f"`peft_methods.{self.name}` must train only its own weights, but also trains the base's.",
                hint="leave `bias` at none: the base is shared by all trials",
            )
        for parameter in adapted.parameters():
            if parameter.requires_grad:  # also what PEFT leaves in the base's precision
                parameter.data = parameter.data.float()
        return adapted

    def frozen_cosines(self, model: PeftModel | PreTrainedModel) -> tuple[float, ...]:
        """Return cosines of the adapter's frozen matrices: singular vectors may have other signs on another machine."""
        import torch

        cosines = []
        for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            if f".{ADAPTER}" not in name or ".modules_to_save." in name or tensor.requires_grad:
                continue
            if not tensor.is_floating_point() or tensor.ndim < 2:
                continue
            # As parts of the longest vector's length: so those of singular values near zero, which are any and change
            # nothing, do not count.
            rows = tensor.flatten(1).detach().to("cpu", torch.float64)  # (r, n)
            rows = rows / rows.norm(dim=1).max().clamp_min(1e-30)
            for step in (1.0, 2.0**0.5):  # of two fixed vectors
                fixed = torch.cos(step * torch.arange(1, rows.shape[1] + 1, dtype=torch.float64))
                cosines.append(float((rows @ fixed).sum() / fixed.norm()))
        return tuple(cosines)

    def _config(self, params: Params, attachment: Mapping[str, Any]) -> PeftConfig:
        fields: dict[str, Any] = {**copy.deepcopy(self.settings.fixed), **params, **attachment}
        if (start := fields.get("init_lora_weights")) in ("eva", "lora_ga"):
            raise ValueError(f"`init_lora_weights: {start}` is computed from rows, by a separate call.")
        return _peft_types()[self.settings.peft_type](**fields)

    @contextlib.contextmanager
    def _built(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UsageError(
                f"`peft_methods.{self.name}` must be a config that PEFT can put on the layers of `target_modules`, but"
                f" PEFT says: {' '.join(str(error).split())}",
                hint=f"see PEFT's documentation of {self.settings.peft_type}",
            ) from error


class HeadOnly(PeftMethod):
    """Only the head, to compare with: no candidate unless `promotion.methods` names it.

    `head_learning_rate` is its one learning rate. To PEFT it is a LoRA of no layer, with a head.
    """

    name: str = "head-only"
    title: str = "Head only"
    description: str = "adapter (none: the base is untouched)"
    is_baseline: ClassVar[bool] = True
    adapts_layers: ClassVar[bool] = False
    needs_head: ClassVar[bool] = True

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> LoraConfig:
        from peft import LoraConfig
        from peft.utils.constants import DUMMY_TARGET_MODULES

        return LoraConfig(**{**attachment, "target_modules": DUMMY_TARGET_MODULES})


_BASE = "_trained_copy_of"  # in a copy's own dictionary: as a submodule the base would be in its state
_BYTES_PER_NUMBER = 16  # weight, gradient and AdamW's two moments, in float32


class Full(Method):
    """Every weight of the base, in a copy in float32, to compare with. Only metrics are recorded; never a candidate.

    A tied weight is one; poolers that the checkpoint lacks stay as they are.
    """

    name: str = "full"
    title: str = "Full fine-tuning"
    symbol: str = "weights"
    description: str = "all weights of the base"
    is_baseline: ClassVar[bool] = True
    has_adapter: ClassVar[bool] = False
    adapts_layers: ClassVar[bool] = False
    advice: ClassVar[str] = (
        "trains a copy of the base: 16 bytes of its device's memory for each number of the base, and 12 of the study's "
        "disk, which travel there with each report until the last; only its metrics are recorded"
    )

    def size(
        self, params: Params, modules: Modules, head: Shapes, identity: Shapes, body: Shapes = NONE
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
        from loraxs_search.machine import free_bytes

        needed = _BYTES_PER_NUMBER * sum(parameter.numel() for parameter in model.parameters())
        free = free_bytes(model.device)
        if needed > free:
            raise UsageError(
                f"`method: full` must have the memory for a copy of the base in training, but {needed / 2**30:.1f} GiB"
                f" are needed and {free / 2**30:.1f} GiB of {model.device} are free.",
                hint="use a device with more memory or a smaller base, or leave the method out",
            )
        trained = cast("PreTrainedModel", copy.deepcopy(model).float())
        trained.__dict__[_BASE] = model
        trained.requires_grad_(True)
        for name in head.identity:
            trained.get_submodule(name).requires_grad_(False)
        return trained

    def detach(self, model: PeftModel | PreTrainedModel) -> PreTrainedModel:
        return cast("PreTrainedModel", model.__dict__[_BASE])

    def is_adapter(self, name: str, model: PeftModel | PreTrainedModel) -> bool:
        from loraxs_search.base_model.layers import head_names

        return name.split(".", maxsplit=1)[0] not in head_names(cast("PreTrainedModel", model))

    def measure(self, model: PeftModel | PreTrainedModel) -> AdapterSize:
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
        own = {name: shape for name, shape in shapes.items() if self.is_adapter(name, model)}
        head = {name: shape for name, shape in shapes.items() if name not in own}
        return self.size({}, (), head, {}, own)

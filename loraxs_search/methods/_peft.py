"""A method whose adapter PEFT builds: what is left to say is its config."""

from __future__ import annotations

import contextlib
import json
import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from loraxs_search.errors import UsageError
from loraxs_search.methods._base import (
    ADAPTER,
    FILES,
    NONE,
    ROOT,
    HeadPlan,
    Method,
    Modules,
    Params,
    PlainLora,
    Shapes,
    file_bytes,
)
from loraxs_search.records.trial import AdapterSize, Hyperparameters

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from loraxs_search.factors.store import FactorStore
    from loraxs_search.methods._base import Pair


class PeftMethod(Method):
    """Implements a method with a PEFT tuner.

    A subclass says `config`, `stored`, and what it declares. Its config must take `target_modules` and
    `modules_to_save`; where `says_pooling` is set, `pass_through` and `pooling` too.
    """

    reads_weights: ClassVar[bool] = False
    """Whether an adapter starts from the base's numbers or in their dtype: the checkpoint's then, on the CPU."""
    merges: ClassVar[bool] = True

    @abstractmethod
    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> PeftConfig:
        """Return PEFT's config of a trial's adapter.

        Args:
            attachment: `target_modules`, `modules_to_save` and `task_type`, to be passed on.
        """

    def stored(self, params: Params, modules: Modules) -> Shapes:
        """Return the tensors that PEFT stores of each layer: name in the base to shape; float32, all of them trained.

        By default there are none.
        """
        return {}

    def size(
        self, params: Params, modules: Modules, head: Shapes, identity: Shapes, body: Shapes = NONE
    ) -> AdapterSize:
        own = self.stored(params, modules)
        tensors = {**own, **head, **({} if self.says_pooling else identity)}
        halved = (name for name, shape in own.items() if len(shape) > 1 and params.get("stored_dtype") == "float16")
        num_bytes = file_bytes(tensors, dtypes=dict.fromkeys(halved, "F16"))
        return AdapterSize(sum(map(prod, own.values())), sum(map(prod, head.values())), num_bytes)

    def written(self, tensors: Mapping[str, Tensor], config: PeftConfig) -> Mapping[str, Tensor]:
        """Return the tensors of an adapter as its file has them; they are what PEFT writes by default.

        Args:
            tensors: As PEFT names them in a file, float32.
        """
        return tensors

    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PeftModel:
        import torch
        from peft import get_peft_model
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        modules = dict(model.named_modules())
        layers = {name: modules[name] for name in hyper.target_modules if name in modules}  # PEFT refuses the others
        for name, layer in layers.items():
            if not isinstance(layer, nn.Linear | Conv1D):  # some tuners take embeddings, which no method here means
                raise UsageError(f"`target_modules` must be linear layers, but {name} is {type(layer).__name__}.")
        attachment = {"target_modules": list(hyper.target_modules), "task_type": head.task_type}
        if self.says_pooling:
            own = {"pass_through": list(head.identity), "pooling": head.pooling}
            config = self.config(hyper, attachment | {"modules_to_save": list(head.trained)} | own)
        else:
            config = self.config(hyper, attachment | {"modules_to_save": [*head.trained, *head.identity]})
        if hasattr(config, "fan_in_fan_out"):  # PEFT finds out too, with a warning
            config.fan_in_fan_out = any(isinstance(layer, Conv1D) for layer in layers.values())
        exact = tuple(layers.values()) if self.reads_weights else ()
        try:
            with torch.random.fork_rng(devices=[]), _exact_weights(exact, factors):
                torch.default_generator.manual_seed(hyper.seed)  # only the CPU's, where PEFT draws
                adapted = get_peft_model(model, config, adapter_name=ADAPTER)
            stored: Any = adapted.peft_config[ADAPTER]
            if isinstance(stored.target_modules, set):  # the fewest endings that tell layers apart, in any order
                stored.target_modules = list(hyper.target_modules)
            for name in set(head.identity) & set(getattr(config, "modules_to_save", None) or ()):
                adapted.get_base_model().get_submodule(name).requires_grad_(False)
            return adapted.to(model.device)  # PEFT leaves projections on the CPU
        except BaseException:  # the device may have no memory left
            unloaded(model)
            raise

    def detach(self, model: PeftModel | PreTrainedModel) -> PreTrainedModel:
        base = unloaded(cast("PreTrainedModel", cast("PeftModel", model).get_base_model()))
        base.requires_grad_(False)
        return base

    def is_adapter(self, name: str, model: PeftModel | PreTrainedModel) -> bool:
        return ".modules_to_save." not in name

    def measure(self, model: PeftModel | PreTrainedModel) -> AdapterSize:
        import safetensors.torch

        trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        own = sum(count for name, count in trained.items() if self.is_adapter(name, model))
        stored, learnt = self._stored_and_learnt(cast("PeftModel", model))
        apart = {name: value.clone().contiguous() for name, value in stored.items()}  # some share their memory
        needed = {name: value for name, value in apart.items() if name in learnt}
        config = cast("PeftModel", model).active_peft_config
        files = (self.written(tensors, config) for tensors in (apart, needed))
        whole, without = (len(safetensors.torch.save(dict(tensors), {"format": "pt"})) for tensors in files)
        return AdapterSize(own, sum(trained.values()) - own, whole, None if len(needed) == len(apart) else without)

    def files(self, model: PeftModel | PreTrainedModel, body_fingerprint: Sequence[float]) -> dict[str, bytes]:
        import safetensors.torch

        from loraxs_search.base_model.reading import pooling_of

        adapted = cast("PeftModel", model)
        pooling = pooling_of(cast("PreTrainedModel", adapted.get_base_model()))
        if hasattr(adapted.active_peft_config, "body_fingerprint"):
            adapted.active_peft_config.body_fingerprint = list(body_fingerprint)
        with tempfile.TemporaryDirectory() as folder:
            adapted.save_pretrained(folder)
            files = {name: (Path(folder) / name).read_bytes() for name in FILES}
        tensors = self.written(safetensors.torch.load(files[_TENSORS]), adapted.active_peft_config)
        files[_TENSORS] = safetensors.torch.save(dict(tensors), {"format": "pt"})
        if pooling != "class" and not self.says_pooling:
            # PEFT refuses such a `task_type`: its head would read something else, without a word.
            values = json.loads(files[_CONFIG])
            task_type = f"{values['task_type'] or ''}{_POOLED}{pooling}"
            files[_CONFIG] = json.dumps(values | {"task_type": task_type}, indent=2).encode()
        return files

    def load(self, base: PreTrainedModel, folder: Path, device: str) -> PeftModel:
        from peft import PeftModel
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        values = json.loads((folder / _CONFIG).read_bytes())
        task_type, _, _ = (values.get("task_type") or "").partition(_POOLED)  # as `files` may have made it
        made = PEFT_TYPE_TO_CONFIG_MAPPING[values["peft_type"]]
        config: PeftConfig = made.from_peft_type(**made.check_kwargs(**values | {"task_type": task_type or None}))
        if not self.reads_weights:
            return PeftModel.from_pretrained(base, str(folder), config=config, torch_device=device)
        cast("nn.Module", base).to("cpu")  # in place; transformers' decorator hides what `to` takes
        loaded: PeftModel = PeftModel.from_pretrained(base, str(folder), config=config, torch_device="cpu")
        return loaded.to(device)

    def as_plain_lora(self, model: PeftModel, pairs: Mapping[str, Pair]) -> PlainLora:
        """Return an adapter's function as LoRA, its trained head included.

        Args:
            pairs: The update of each adapted layer, by full name.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils import get_peft_model_state_dict
        from transformers.pytorch_utils import Conv1D

        config, base = model.active_peft_config, cast("PreTrainedModel", model.get_base_model())
        saved, idle = tuple(config.modules_to_save or ()), tuple(getattr(config, "pass_through", ()))
        state = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
        heads = tuple(f"{ROOT}{name}." for name in saved)
        others = {name: value.detach().cpu().contiguous() for name, value in state.items() if name.startswith(heads)}
        for name in idle:  # plain PEFT would draw these layers of the head
            for key, value in base.get_submodule(name).state_dict().items():
                others[f"{ROOT}{name}.{key}"] = value.detach().cpu().clone()
        layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
        return PlainLora(
            pairs=pairs,
            others=others,
            saved=(*saved, *idle),
            task_type=config.task_type,
            fan_in_fan_out=any(isinstance(layer.get_base_layer(), Conv1D) for layer in layers),
        )

    @staticmethod
    def _stored_and_learnt(model: PeftModel) -> tuple[dict[str, Tensor], set[str]]:
        """Return what an adapter's file holds, and the names there of what no seed and no base gives back."""
        from peft import get_peft_model_state_dict

        state = cast("nn.Module", model).state_dict(keep_vars=True)
        stored: dict[str, Tensor] = get_peft_model_state_dict(model, state_dict=state, adapter_name=ADAPTER)
        whole = tuple(f"{ROOT}{name}." for name in getattr(model.peft_config[ADAPTER], "modules_to_save", None) or ())
        learnt = {name for name, tensor in stored.items() if tensor.requires_grad or name.startswith(whole)}
        return {name: tensor.detach() for name, tensor in stored.items()}, learnt


_CONFIG, _TENSORS = FILES
_POOLED = " on a pool, only for loraxs_search.load_adapter: "


@contextlib.contextmanager
def _exact_weights(layers: Sequence[nn.Module], factors: FactorStore | None) -> Iterator[None]:
    """Give layers the checkpoint's own weights for a while, on the CPU: what is made of them is the same on any device.

    Rounded weights have other singular vectors, and another device or number of threads computes others. The base's own
    weights stay as they are: other threads may compute with them.

    Args:
        factors: Knows the checkpoint's weights; None if the model has them itself.
    Raises:
        UsageError: a weight was changed, as by `init_lora_weights: pissa`.
    """
    import torch
    from torch import nn

    from loraxs_search.machine import single_thread

    held = [(layer, weight) for layer in layers if isinstance(weight := layer.weight, nn.Parameter)]
    exact = [weight if factors is None else factors.checkpoint_weight(weight) for _, weight in held]
    try:
        for (layer, _), weight in zip(held, exact, strict=True):
            layer.weight = nn.Parameter(weight.detach().to("cpu", copy=True), requires_grad=False)
        with single_thread() if held else contextlib.nullcontext():
            yield
        for (layer, _), weight in zip(held, exact, strict=True):
            if not torch.equal(cast("Tensor", layer.weight).cpu(), weight.cpu()):
                raise UsageError(
                    "A method must leave the base's weights as they are, but this one starts by changing them.",
                    hint="choose another start (a field such as `init_weights`): the base is shared by all trials",
                )
    finally:
        for layer, weight in held:
            layer.weight = weight


def unloaded(base: PreTrainedModel, *, merge: bool = False) -> PreTrainedModel:
    """Take adapters off a base, which is again as it was; with `merge`, their update and their trained head put in.

    PEFT's own `unload` (0.21.2) copies a `weight` from each module, which a composite head such as RoBERTa's has not.

    Args:
        base: What `attach` was given, `get_base_model()` of what it returned.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    done: list[str] = []
    for name, module in list(base.named_modules()):
        if any(name.startswith(f"{wrapper}.") for wrapper in done):
            continue
        if isinstance(module, AuxiliaryTrainingWrapper):
            trained = module.unload_and_optionally_merge_module
            own = trained(True, safe_merge=False, adapter_names=None) if merge else module.original_module
        elif isinstance(module, BaseTunerLayer):
            if merge:
                module.merge()
            own = module.get_base_layer()
        else:
            continue
        base.set_submodule(name, own)
        done.append(name)
    if hasattr(base, "peft_config"):
        del base.peft_config  # or PEFT warns of it when the next adapter comes
    return base

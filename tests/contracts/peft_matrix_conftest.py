"""Put in place of PEFT's own conftest: its test matrix of small models, with LoRA-XS for a method.

PEFT's parametrisations hold their lists by reference, so lists changed before collection are what is collected.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types

import pytest
import torch

if importlib.util.find_spec("diffusers") is None:  # asked for at import, by tests of Stable Diffusion that are not run
    stand_in = types.ModuleType("diffusers")
    stand_in.__spec__ = importlib.machinery.ModuleSpec("diffusers", None)
    stand_in.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    sys.modules["diffusers"] = stand_in

from loraxs_search.methods.loraxs import LoraXSConfig


class MatrixConfig(LoraXSConfig):
    """As the matrices make configs: nothing is changed at the start, unless `init_weights` is False."""

    target_parameters = None  # a field of other methods that the matrices ask every config for

    def __init__(self, *args, init_weights: bool | None = None, **kwargs) -> None:
        if init_weights is not None or "init_std" not in kwargs:
            kwargs["init_std"] = 0.5 if init_weights is False else 0.0
        super().__init__(*args, **kwargs)


BY_DESIGN = {
    "test_adding_multiple_adapters_with_bias_raises": "biases are never trained: the config itself refuses it",
    "test_adapter_dtype_autocast": "R stays float32 whatever it is asked to be",
    "test_add_adapter_no_autocast_adapter_dtype": "R stays float32 whatever it is asked to be",
}

custom = importlib.import_module("tests.test_custom_models")  # PEFT's


def case(name: str, model: str, **config: object) -> tuple[object, ...]:
    return f"LoRA-XS {name}", model, MatrixConfig, {"r": 2, **config}


custom.TEST_CASES[:] = [
    case("one", "MLP", target_modules="lin0", r=4),
    case("list", "MLP", target_modules=["lin0"], r=4),
    case("two", "MLP", target_modules=["lin0", "lin1"]),
    case("scale", "MLP", target_modules=["lin0"], scale=2.0),
    case("sqrt", "MLP", target_modules=["lin0"], sigma="sqrt"),
    case("bottom", "MLP", target_modules=["lin0"], basis="bottom"),
    case("saved", "MLP", target_modules=["lin0"], modules_to_save=["lin1"]),
    case("Conv1D", "EmbConv1D", target_modules=["conv1d"], r=1),
    case("beside Conv1D", "EmbConv1D", target_modules=["lin0"]),
    case("norms", "MLP_LayerNorm", target_modules=["lin0"]),
]
custom.ALL_PEFT_CONFIG_CLASSES[:] = [MatrixConfig]
ACTIVE = {"target_modules": ["lin0"], "r": 4, "init_weights": False}
custom.MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES[:] = [
    ("LoRA-XS same", "loraxs", MatrixConfig, ACTIVE, {**ACTIVE, "r": 3}),
    ("LoRA-XS different", "loraxs", MatrixConfig, {**ACTIVE, "r": 1}, {**ACTIVE, "r": 2, "target_modules": ["lin1"]}),
    ("LoRA-XS sigma", "loraxs", MatrixConfig, ACTIVE, {**ACTIVE, "sigma": "output", "init_seed": 1}),
]


custom.MIXED_ADAPTER_TEST_CASES[:] = []  # rows of several adapters are for `loraxs_search.AdapterBank`


@pytest.fixture(autouse=True)
def _the_same_base_each_time(monkeypatch):
    """Some tests build their base anew to load into: R is refused on other weights, so it gets the same ones."""

    class DeepMLP(custom.DeepMLP):
        def __init__(self, *args: object, **kwargs: object) -> None:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                super().__init__(*args, **kwargs)

    monkeypatch.setattr(custom, "DeepMLP", DeepMLP)


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    ours = [item for item in items if "MatrixConfig" in item.nodeid or "LoRA-XS" in item.nodeid]
    config.hook.pytest_deselected(items=[item for item in items if item not in ours])
    for item in ours:
        name = getattr(item, "originalname", "")
        if (reason := BY_DESIGN.get(name)) is not None:
            item.add_marker(pytest.mark.skip(reason=f"by design: {reason}"))
    items[:] = ours

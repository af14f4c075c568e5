"""Configs of PEFT's as methods: what a shared base allows, and every type that PEFT has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import bases
from torch import nn

from loraxs_search.errors import UsageError
from loraxs_search.methods import get_method
from loraxs_search.methods._base import HeadPlan
from loraxs_search.methods.peft_methods import _peft_types
from loraxs_search.records.task import LinearModule
from loraxs_search.records.trial import Hyperparameters, PeftSettings

NEEDED: dict[str, dict[str, Any]] = {  # by types whose defaults do not fit layers of 32 x 32
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 50},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 50},
}


def hyper(base: nn.Module, peft_type: str, **fixed: Any) -> Hyperparameters:
    names = tuple(name for name, it in base.named_modules() if isinstance(it, nn.Linear) and ".1." in name)
    return Hyperparameters(names, 1e-3, 1e-3, seed=3, method="mine", peft=PeftSettings(peft_type, fixed, {}))


@pytest.mark.parametrize(
    ("peft_type", "fixed"),
    [("LORA", {"init_lora_weights": "pissa"}), ("LORA", {"bias": "all"}), ("LORA", {"init_lora_weights": "typo"})],
)
def test_what_would_change_the_shared_base_is_refused(peft_type, fixed):
    base = bases.base(bases.BERT, noise=0.05).requires_grad_(False)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    own = hyper(base, peft_type, **fixed)
    with pytest.raises(UsageError):
        get_method("mine", own.peft).attach(base, own, HeadPlan(("classifier",)), None)
    after = base.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.long(part="software")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peft_type", _peft_types())
def test_every_type_is_counted_trained_stored_and_loaded(peft_type, tmp_path):
    base = bases.base(bases.BERT, noise=0.05).requires_grad_(False)
    own = hyper(base, peft_type, **NEEDED.get(peft_type, {}))
    method, ids = get_method("mine", own.peft), torch.arange(4, 25).reshape(3, 7)
    model = method.attach(base, own, HeadPlan(("classifier",)), None).eval()
    layers = {name: base.get_submodule(name) for name in own.target_modules}
    modules = [LinearModule(name, layer.in_features, layer.out_features) for name, layer in layers.items()]
    assert method.size({}, modules, {}, {}).r_parameters == method.measure(model).r_parameters
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer, reached = torch.optim.AdamW(trained.values(), lr=0.02), set[str]()
    for _ in range(4):
        optimizer.zero_grad()
        model(input_ids=ids).logits.square().sum().backward()
        optimizer.step()
        reached |= {name for name, value in trained.items() if value.grad is not None and value.grad.any()}
    assert reached == trained.keys()
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    files = method.files(model, ())
    assert method.measure(model).stored_bytes == len(files["adapter_model.safetensors"])
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    loaded = method.load(bases.base(bases.BERT, noise=0.05), tmp_path, "cpu").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-6)

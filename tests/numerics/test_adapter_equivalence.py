"""Laws that tie a LoRA-XS adapter to plain arithmetic, to its saved files, to its merged form and to plain LoRA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from support.bases import FAMILIES, VOCAB, families, small_classifier
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.load import load_model
from loraxs_search.factors.compute import compute_factors
from loraxs_search.factors.store import FactorStore, agrees, fingerprint
from loraxs_search.methods.export.folder import write_plain_lora
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.loraxs import LoraXSConfig, LoraXSLinear, use_factor_store
from loraxs_search.tasks.kinds import classifier

SIGMAS = ("input", "sqrt", "output", "none")
IDS = torch.randint(2, VOCAB, (4, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", autouse=True)
def _factor_store(tmp_path_factory):
    with use_factor_store(FactorStore(tmp_path_factory.mktemp("factors"))):
        yield


def make_base(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = small_classifier(family)
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            module.weight.data.mul_(5)  # far from zero, so that a wrong factor shows in the logits
    return model.to(dtype)


def adapt(model: nn.Module, **config: object) -> PeftModel:
    config = {"r": 4, "target_modules": "all-linear", "init_std": 0.3, "init_seed": 7, "task_type": "SEQ_CLS", **config}
    return get_peft_model(model, LoraXSConfig(**config)).eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def layers(model: nn.Module) -> list[LoraXSLinear]:
    return [module for module in model.modules() if isinstance(module, LoraXSLinear)]


# ---- arithmetic ------------------------------------------------------------------------------------------------------
# Which singular values a basis takes, largest numbered 0 of 10.
TAKEN = {"top": [0, 1, 2, 3], "bottom": [9, 8, 7, 6], "middle": [4, 5, 3, 6]}


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize(
    ("sigma", "basis"), [*((sigma, "top") for sigma in SIGMAS), ("input", "middle"), ("sqrt", "bottom")]
)
def test_the_output_is_the_formula_in_plain_numpy(kind, sigma, basis):
    torch.manual_seed(2)
    layer = nn.Linear(14, 10) if kind == "linear" else Conv1D(10, 14)
    nn.init.normal_(layer.weight)
    config = {"r": 4, "scale": 0.7, "sigma": sigma, "basis": basis, "init_std": 1.0, "target_modules": ["0"]}
    model = get_peft_model(nn.Sequential(layer), LoraXSConfig(**config))
    x = torch.randn(3, 5, 14)
    w = layer.weight.detach().double().numpy()
    w = w if kind == "linear" else w.T  # (out, in)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    sign = np.sign(u[np.abs(u).argmax(0), range(u.shape[1])])
    taken = TAKEN[basis]
    u, s, vt = (u * sign)[:, taken], s[taken], (vt * sign[:, None])[taken]
    power_a, power_b = {"input": (1, 0), "sqrt": (0.5, 0.5), "output": (0, 1), "none": (0, 0)}[sigma]
    (adapted,) = layers(model)
    r = adapted.loraxs_R["default"].detach().double().numpy()
    delta = 0.7 * (u * s**power_b) @ r @ (s[:, None] ** power_a * vt)
    expected = x.double().numpy() @ (w + delta).T + layer.bias.detach().double().numpy()
    np.testing.assert_allclose(model(x).detach().numpy(), expected, atol=2e-5)
    delta = delta if kind == "linear" else delta.T
    np.testing.assert_allclose(adapted.get_delta_weight("default").numpy(), delta, atol=1e-5)


@pytest.mark.parametrize("family", families(FAMILIES))
def test_r_of_zero_is_the_base_bit_for_bit(family):
    for dtype in (torch.float32, torch.bfloat16):
        expected = logits(make_base(family, dtype))
        assert torch.equal(logits(adapt(make_base(family, dtype), init_std=0.0)), expected)


# ---- merged = unmerged -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", families(FAMILIES))
def test_merged_is_unmerged(family):
    for sigma in SIGMAS:
        model = adapt(make_base(family), sigma=sigma)
        expected = logits(model)
        model.merge_adapter()
        torch.testing.assert_close(logits(model), expected, atol=2e-5, rtol=1e-4)
        model.unmerge_adapter()
        assert torch.equal(logits(model), expected)
        torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=2e-5, rtol=1e-4)


# ---- saved = loaded --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", *families(name for name in FAMILIES if name != "gpt2")])  # gpt2: Conv1D
def test_saved_is_loaded_and_the_same_as_plain_lora(family, tmp_path):
    model = adapt(make_base(family), scale=0.5, r=3)
    expected = logits(model)
    model.save_pretrained(str(tmp_path / "native"))
    write_plain_lora(LoraXS().plain_lora(model), tmp_path / "lora")
    for form in ("native", "lora"):
        loaded = PeftModel.from_pretrained(make_base(family), str(tmp_path / form)).eval()
        torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, atol=2e-5, rtol=1e-4)


# ---- golden numbers --------------------------------------------------------------------------------------------------
# Born on an Intel Xeon with torch 2.13 (MKL). Stored adapters carry fingerprints like these: where a library changes
# them, those adapters are refused.
GOLDEN = {
    "bert.encoder.layer.0.attention.self.query": [-0.069654, -0.030209, 4.206658, 1.161495, 1.237044, 1.949365],
    "bert.encoder.layer.5.output.dense": [0.691175, -0.126012, 3.556227, -2.839782, -0.362059, 1.949365],
}


def test_the_quickstart_base_has_the_same_factors_on_every_machine(quickstart_base):
    model = load_model(quickstart_base, classifier(2))
    for name, golden in GOLDEN.items():
        a, b = compute_factors(model.get_submodule(name).weight, rank=64).ab(16)
        assert agrees(golden, fingerprint(a, b), tolerance=1e-5), name

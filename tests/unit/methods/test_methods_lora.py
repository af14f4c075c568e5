"""Plain LoRA: PEFT's own numbers, and what it is as plain LoRA."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from loraxs_search.errors import UsageError
from loraxs_search.methods import get_method
from loraxs_search.methods._base import HeadPlan, PlainLora
from loraxs_search.methods.export.folder import write_plain_lora
from loraxs_search.methods.lora_xs import LoraXS
from loraxs_search.methods.loraxs import LoraXSConfig, ModuleSettings
from loraxs_search.methods.names import file_bytes
from loraxs_search.records.task import LinearModule
from loraxs_search.records.trial import Hyperparameters

HEAD = HeadPlan(trained=("classifier",), task_type="SEQ_CLS")
TARGETS = {
    "bert": ("bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.output.dense"),
    "gpt2": ("transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"),
}


def hyper(family: str = "bert", **params) -> Hyperparameters:
    method = get_method("lora")
    fields = method.fields({"rank": 4, **params}, {})
    rates = {"learning_rate": 1e-3, "head_learning_rate": 1e-3}
    return Hyperparameters(target_modules=TARGETS[family], **rates, **fields, seed=5, method="lora")


def attached(base, family: str = "bert", **params) -> PeftModel:
    head = HEAD if family == "bert" else HeadPlan(trained=("score",), task_type="SEQ_CLS")
    return get_method("lora").attach(base, hyper(family, **params), head, None).eval()


def pairs(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" in name}


@torch.no_grad()
def shake(model: nn.Module) -> None:
    for name in pairs(model):
        value = model.get_parameter(name)
        value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(2)), alpha=0.2)


@pytest.mark.parametrize(("params", "own"), [({}, {}), ({"scale": 0.5}, {"lora_alpha": 2})])
def test_it_begins_with_the_numbers_of_stock_peft(make_base, inputs, logits, params, own):
    model, other = attached(make_base(), **params), make_base()
    torch.manual_seed(5)
    config = {"r": 4, "lora_alpha": 4, "target_modules": list(TARGETS["bert"]), "task_type": "SEQ_CLS", **own}
    stock = get_peft_model(other, LoraConfig(**config)).eval()
    mine, theirs = pairs(model), pairs(stock)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], value) for name, value in theirs.items())
    assert torch.equal(logits(model, inputs), logits(stock, inputs))


def test_it_begins_in_float32_whatever_the_base_is_in(make_base):
    halved, whole = attached(make_base().bfloat16()), attached(make_base())
    assert all(torch.equal(pairs(halved)[name], value) for name, value in pairs(whole).items())


@pytest.mark.parametrize(("family", "params"), [("bert", {"scale": 3.0}), ("gpt2", {"scale": 0.5})])
def test_it_is_plain_lora_on_the_base_as_it_was(make_base, family, params, inputs, logits, tmp_path):
    model = attached(make_base(family), family, **params)
    shake(model)
    expected = logits(model, inputs)
    write_plain_lora(get_method("lora").plain_lora(model), tmp_path)
    loaded = PeftModel.from_pretrained(make_base(family), str(tmp_path)).eval()
    config = loaded.peft_config["default"]
    assert (config.r, config.lora_alpha) == (4, 4)
    assert get_method("lora").params(hyper(family, **params))["rank"] == config.r
    assert config.init_lora_weights is True
    torch.testing.assert_close(logits(loaded, inputs), expected, atol=1e-5, rtol=1e-5)


def test_its_files_are_the_same_bytes_each_time(make_base):
    method = get_method("lora")
    first, second = (method.files(attached(make_base()), ()) for _ in range(2))
    assert first == second
    assert b'"bert.encoder.layer.0.attention.self.query",\n' in first["adapter_config.json"]


def test_what_is_no_linear_layer_is_refused(make_base):
    wrong = Hyperparameters(("bert.embeddings.word_embeddings",), 1e-3, 1e-3, method="lora", method_params={"rank": 2})
    with pytest.raises(UsageError, match="`target_modules`"):
        get_method("lora").attach(make_base(), wrong, HEAD, None)


@pytest.mark.parametrize("name", ["lora", "lora-xs"])
def test_rank_is_held_against_the_smaller_side(name):
    modules, method = (LinearModule("wide", 24, 8), LinearModule("square", 24, 24)), get_method(name)
    method.check(method.with_defaults({"rank": 8}), modules)
    with pytest.raises(UsageError, match=r"1\.\.8, .*rank=9 for wide"):
        method.check(method.with_defaults({"rank": 9}), modules)


def test_an_update_of_several_ranks_is_no_file_of_plain_lora(tmp_path):
    pairs = {f"layer.{rank}": (torch.ones(rank, 4), torch.ones(4, rank)) for rank in (2, 3)}
    with pytest.raises(UsageError, match="one rank in all layers, but got 2, 3"):
        write_plain_lora(PlainLora(pairs, {}), tmp_path)
    assert not list(tmp_path.iterdir())


PARTS = (
    "methods.lora",
    "methods.verification",
    "methods.loraxs.packed",
    "engine.layers",
)
IMPORT_EACH_FIRST = """
import importlib, os, sys
import transformers.modeling_utils  # what takes long, and imports no PEFT
assert "peft" not in sys.modules
for name in sys.argv[1:]:
    if (child := os.fork()) == 0:
        importlib.import_module(f"loraxs_search.{name}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_its_parts_may_be_what_imports_peft_first():
    """Importing PEFT imports LoRA-XS, and what that needs."""
    subprocess.run([sys.executable, "-c", IMPORT_EACH_FIRST, *PARTS], check=True)


# ---- lora xs ---------------------------------------------------------------------------------------------------------
HYPER = Hyperparameters(rank=4, target_modules=("q",), learning_rate=1e-3, head_learning_rate=1e-3)


def test_factors_are_stored_at_a_bucket_that_all_trials_of_a_space_share():
    for largest, stored in ((1, 64), (64, 64), (65, 128), (300, 512)):
        factor_rank = LoraXS().fields({}, {"rank": (1, largest)})["factor_rank"]
        assert factor_rank == stored
        for config in (LoraXSConfig(r=1, factor_rank=factor_rank), LoraXSConfig(r=largest)):
            assert ModuleSettings.of(config, "q", 1536, 4096).factor_key.rank == stored
            if largest < 384:
                assert ModuleSettings.of(config, "q", 1536, 384).factor_key.rank == min(stored, 384)


def test_bytes_are_those_of_the_file_that_peft_would_write():
    shapes = {"a.b.loraxs_R": (3, 3), "z": (5,), "a.a.loraxs_R": (3, 3), "classifier.weight": (2, 7)}
    for root in ("base_model.model.", ""):
        named = {f"{root}{name}": torch.zeros(shape) for name, shape in shapes.items()}
        assert file_bytes(shapes, root=root) == len(safetensors.torch.save(named, {"format": "pt"}))


def test_its_params_come_back_out_of_a_record_with_the_records_defaults():
    method = get_method("lora-xs")
    params = {"rank": 8, "basis": "bottom"}
    record = dataclasses.replace(HYPER, **method.fields(params, {"rank": (4, 100), "basis": ("bottom",)}))
    assert method.params(record) == method.with_defaults(params)
    assert (record.factor_rank, record.method_params) == (128, {})


def test_a_method_is_known_without_torch():
    code = "import sys, loraxs_search.methods as m; m.get_method('lora-xs'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_trial_with_factors_of_its_own_takes_room_for_them():
    modules = (LinearModule("wide", 24, 8), LinearModule("square", 24, 24))
    needed = {
        basis: LoraXS().slot_bytes(LoraXS().with_defaults({"rank": 4, "basis": basis}), modules, 2)
        for basis in ("top", "gaussian")
    }
    assert needed["gaussian"] - needed["top"] == 4 * 4 * (24 + 8 + 24 + 24)
    assert LoraXS().factor_sets({"rank": (4,), "basis": ("gaussian",)}) == ()


def test_no_trial_starts_from_an_adapter_whose_factors_were_drawn():
    start = dataclasses.replace(HYPER, basis="gaussian")
    with pytest.raises(UsageError) as refused:
        LoraXS().check_start(start, LoraXS().params(start), (LinearModule("q", 8, 8),))
    assert refused.value.hint == "name an adapter of another basis"

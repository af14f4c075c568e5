"""What every method keeps: the package's own, one from outside of it, a toy, and one of PEFT's by its config."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch
from support import bases
from support.toy_ia3 import ToyIA3
from torch import Tensor, nn
from transformers import PreTrainedModel, RobertaConfig

from loraxs_search.base_model.layers import fresh_head, head_names, output_head
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.reading import place_pooling
from loraxs_search.errors import LoraxsError, UsageError
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods import METHODS
from loraxs_search.methods._base import Method
from loraxs_search.methods.export.folder import FORMATS, converted
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.methods.loraxs.model import body_fingerprint
from loraxs_search.methods.stored import rounded
from loraxs_search.records.codec import from_json, to_json
from loraxs_search.records.task import BaseModelRef, LinearModule
from loraxs_search.records.trial import Hyperparameters, TrialSpec
from loraxs_search.search_space.load import load_space
from loraxs_search.search_space.parameters import COMMON
from loraxs_search.search_space.space import Space, describe, notes
from loraxs_search.trial.attach import attach, detach

OWN: dict[str, tuple[dict[str, Any], ...]] = {  # params of each to try, all that decide what is stored among them
    "lora-xs": (
        {"rank": 2},
        {"rank": 8, "basis": "bottom", "sigma": "sqrt", "init_std": 0.5, "stored_dtype": "float16"},
        {"rank": 3, "basis": "gaussian", "stored_dtype": "float32"},
    ),
    "lora": ({"rank": 2}, {"rank": 4, "scale": 2.0, "stored_dtype": "float32"}),
    "vera": ({"r": 3}, {"r": 40, "d_initial": 0.5}),
    "full": ({},),
    "head-only": ({},),
    "toy-ia3": ({}, {"side": "input"}),
}
PEFT = {"vera": {"peft_type": "VERA"}}  # of a space's `peft_methods`: others are in `test_methods_peft_methods.py`
TRAINED = {"head-only": {False}}  # the adapter's numbers, the head's
BASES = {"roberta": RobertaConfig(**bases.SMALL), "llama": bases.LLAMA}  # of two head layers, and none
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


on_llama = pytest.mark.parametrize("base", ["llama"], indirect=True)
HEADS = (("roberta", "output"), ("llama", "full"))


# Each method on a base and a head; those that pack on both.
CASES = [
    (name, base, head)
    for number, name in enumerate(OWN)
    for base, head in (HEADS if name in ("lora-xs", "lora") else HEADS[number % 2 :][:1])
]
each_head = pytest.mark.parametrize(("method", "base", "head"), CASES, indirect=["method", "base"])


@pytest.fixture(params=OWN)
def method(request, monkeypatch):
    monkeypatch.setitem(METHODS._entries, ToyIA3.name, ToyIA3)
    name = request.param
    return space_of(name, {key: value for own in OWN[name] for key, value in own.items()}).method(name)


def space_of(name: str, own: dict[str, Any]) -> Space:
    """Return a space of one method, with these of its own parameters."""
    return _space(name, json.dumps({"learning_rate": 1e-3, **own}))


@functools.cache
def _space(name: str, parameters: str) -> Space:
    named = [f"peft_methods={json.dumps({name: PEFT[name]})}"] if name in PEFT else []
    return load_space("movie_reviews", overrides=[*named, f"method={name}", f"parameters={parameters}"])


@functools.cache
def _made_base(family: str) -> PreTrainedModel:
    return bases.base(BASES[family], noise=0.05).requires_grad_(False)


@pytest.fixture
def base(request, in_warm_home):
    return copy.deepcopy(_made_base(request.param))


def linears(base: PreTrainedModel) -> dict[str, LinearModule]:
    return {
        name: LinearModule(name, layer.in_features, layer.out_features)
        for name, layer in base.named_modules()
        if isinstance(layer, nn.Linear) and re.search(r"\.1\.", name)
    }


def specs(method: Method, base: PreTrainedModel, head: str = "full", seed: int = 3) -> Iterator[TrialSpec]:
    """Yield a trial of each of the method's params, on the last layer's modules."""
    names = tuple(linears(base))
    for own in OWN[method.name]:
        possible = {name: (own.get(name, spec.default),) for name, spec in method.parameters.items()}
        fields = method.fields(own, possible)
        common = {"head": head, "seed": seed, "method": method.name, "peft": getattr(method, "settings", None)}
        hyper = Hyperparameters(names, 1e-3, 1e-3, **common, **fields)
        yield TrialSpec("0", own, hyper)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def logits(model: nn.Module) -> Tensor:
    ids = torch.randint(4, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return all that a base holds below its head, by name."""
    heads = head_names(model)
    return {n: value.clone() for n, value in model.state_dict().items() if n.split(".")[0] not in heads}


# ---- declaration and resolution --------------------------------------------------------------------------------------
def test_a_declaration_is_whole(method):
    assert method.name in PEFT or METHODS.get(method.name) is type(method)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", method.name)
    assert method.title and method.symbol and method.description
    assert not method.parameters.keys() & COMMON.keys(), "they belong to every method"
    assert set(method.sized_by) <= method.parameters.keys()
    for spec in method.parameters.values():
        assert spec.default is None or spec.check(spec.default) == spec.default
    assert not method.not_offered.keys() & method.parameters.keys()


@on_llama
def test_a_space_of_the_method_is_described_and_drawn_from_and_its_params_are_stored(method, base):
    for spec in specs(method, base):
        record = from_json(Hyperparameters, to_json(spec.hyperparameters))
        assert record == spec.hyperparameters
        assert method.params(record) == method.with_defaults(spec.params)
        assert method.name in PEFT or method.params(record).keys() == method.parameters.keys()
    given = OWN[method.name][0]
    required = {name for name, spec in method.parameters.items() if spec.default is None and not spec.optional}
    assert required <= given.keys()
    space = space_of(method.name, given)
    modules = tuple(linears(base).values())
    described = describe(space, modules)
    hyper = space.hyperparameters({"learning_rate": 1e-3, **given}, modules, 5)
    assert (hyper.method, hyper.seed, hyper.head_learning_rate) == (method.name, 5, 1e-3)
    assert described.largest.size == method.size(method.params(hyper), modules, {}, {})
    assert all(rank > 0 for _, rank in space.factor_sets())


# ---- on a base -------------------------------------------------------------------------------------------------------
@each_head
def test_what_is_trained_starts_from_the_seed_alone(method, base, head):
    for spec, other in zip(specs(method, base, head), specs(method, base, head, seed=4), strict=True):
        torch.manual_seed(11)
        before = torch.get_rng_state()
        model = attach(base, spec)
        assert torch.equal(torch.get_rng_state(), before), "no generator of the process is used"
        first = {name: p.detach().clone() for name, p in trained(model).items()}
        assert {method.is_adapter(name, model) for name in first} == TRAINED.get(method.name, {True, False})
        assert {p.dtype for p in first.values()} == {torch.float32}
        assert all(p.device == base.device for p in first.values())
        detach(model, spec)
        torch.manual_seed(12)
        again = trained(model := attach(base, spec))
        assert first.keys() == again.keys() and all(torch.equal(again[name], value) for name, value in first.items())
        detach(model, spec)
        elsewhere = trained(model := attach(base, other))
        assert not all(torch.equal(elsewhere[name], value) for name, value in first.items()), "the head at least"
        detach(model, other)


@each_head
def test_steps_reach_all_that_is_trained_and_the_base_is_given_back_as_it_was(method, base, head):
    ids = torch.randint(4, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    layers, before = {name: id(module) for name, module in base.named_modules()}, state(base)
    idle = output_head(base)[1] if head == "output" else ()
    for spec in specs(method, base, head):
        model, reached = attach(base, spec), set[str]()
        optimizer = torch.optim.AdamW(trained(model).values(), lr=0.1)
        for _ in range(2):  # where a product starts at zero, its other factors have no gradient at first
            optimizer.zero_grad()
            model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().sum().backward()
            reached |= {name for name, p in trained(model).items() if p.grad is not None and p.grad.abs().sum() > 0}
            optimizer.step()
        assert reached == trained(model).keys()
        assert detach(model, spec) is base
        assert {name: id(module) for name, module in base.named_modules()} == layers
        assert all(torch.equal(value, before[name]) for name, value in state(base).items())
        assert not any(p.requires_grad for p in base.parameters())
        drawn = {name: base.get_parameter(name) for name in fresh_head(base, 3)}
        for name, value in fresh_head(base, 3).items():
            assert name.rpartition(".")[0] in idle or torch.equal(drawn[name], value), "the head as it was drawn"


@on_llama
def test_an_adapter_that_does_not_fit_leaves_the_base_as_it_was(method, base):
    if method.name in ("full", "head-only"):
        return  # they adapt no layer
    layers = {name: id(module) for name, module in base.named_modules()}
    spec = next(specs(method, base))
    names = (*spec.hyperparameters.target_modules, "no.such.layer")
    embedding = next(name for name, module in base.named_modules() if isinstance(module, nn.LayerNorm | nn.Embedding))
    for wrong in (("no.such.layer",), (*names[:-1], embedding)):
        hyper = dataclasses.replace(spec.hyperparameters, target_modules=wrong)
        with pytest.raises((LoraxsError, ValueError, TypeError, AttributeError)):
            attach(base, dataclasses.replace(spec, hyperparameters=hyper))
        assert {name: id(module) for name, module in base.named_modules()} == layers


@each_head
def test_its_size_is_known_without_weights(method, base, head):
    modules = tuple(linears(base).values())
    shapes = {name: tuple(value.shape) for name, value in fresh_head(base, 0).items()}
    kept = {n: s for n, s in shapes.items() if head == "output" and not n.startswith(f"{output_head(base)[0]}.")}
    stored = {name: shape for name, shape in shapes.items() if name not in kept}
    body = {name: tuple(value.shape) for name, value in base.named_parameters() if name not in shapes}
    for spec in specs(method, base, head):
        model = attach(base, spec)
        measured = method.measure(model)
        assert method.size(method.params(spec.hyperparameters), modules, stored, kept, body) == measured
        if method.has_adapter:
            assert measured.stored_bytes == len(method.files(model, ())["adapter_model.safetensors"])
        assert (measured.without_projection or 0) < measured.stored_bytes
        own = sum(p.numel() for name, p in trained(model).items() if method.is_adapter(name, model))
        assert (measured.r_parameters, measured.head_parameters) == (own, sum(map(prod, stored.values())))
        detach(model, spec)


@each_head
def test_what_is_stored_is_the_model_and_its_pool_or_stock_peft_refuses_it(method, base, head, tmp_path):
    """Whoever loads it without knowing of pools gets the trained model, or an error; never another model."""
    from peft import PeftModel

    if not method.has_adapter:
        return
    for number, spec in enumerate(specs(method, base, head)):
        pooling = ("class", "mean")[number % 2]
        place_pooling(base, pooling)
        model, draw = attach(base, spec), torch.Generator().manual_seed(1)
        for name, parameter in trained(model).items():
            moved = parameter.data + 0.3 * torch.randn(parameter.shape, generator=draw)
            is_head, dtype = not method.is_adapter(name, model), spec.hyperparameters.stored_dtype
            parameter.data.copy_(rounded(moved, dtype, is_head=is_head))
        expected, folder = logits(model), tmp_path / str(number)
        folder.mkdir()
        for name, content in method.files(model, body_fingerprint(base)).items():
            (folder / name).write_bytes(content)
        detach(model, spec)
        others = [bases.base(type(base.config).from_dict(base.config.to_dict()), noise=0.05) for _ in range(2)]
        place_pooling(others[0], pooling)  # as its task is loaded
        loaded = method.load(others[0], folder, "cpu").eval()
        torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-6)
        if method.says_pooling or pooling == "class":
            there = PeftModel.from_pretrained(others[1], str(folder)).eval()
            torch.testing.assert_close(logits(there), expected, rtol=1e-5, atol=1e-6)
        else:
            with pytest.raises(ValueError, match=r"Invalid task type: '.*loraxs_search\.load_adapter: mean'"):
                PeftModel.from_pretrained(others[1], str(folder))


# ---- packed ----------------------------------------------------------------------------------------------------------
@on_llama
def test_a_packed_adapter_is_the_lone_one(method, base):
    if not method.packs:
        assert not space_of(method.name, OWN[method.name][0]).is_packable
        return
    layers = {name: base.get_submodule(name) for name in linears(base)}
    for spec in specs(method, base):
        adapter = method.packed_adapter(spec.hyperparameters, layers, FactorStore(), torch.device("cpu"))
        assert adapter.modules == tuple(layers)
        assert all(own is again for own, again in zip(adapter.tensors, adapter.tensors, strict=True))
        assert all(tensor.is_leaf and tensor.requires_grad for tensor in adapter.tensors)
        model = attach(base, spec)
        lone = {name: value for name, value in trained(model).items() if method.is_adapter(name, model)}
        named = adapter.named(adapter.tensors)
        assert named.keys() == lone.keys()
        assert all(torch.equal(named[name], value) for name, value in lone.items())
        doubled = {name: 2 * value for name, value in named.items()}
        stacked = adapter.stacked({**doubled, "of.another": torch.zeros(1)})
        assert all(torch.equal(a, 2 * b) for a, b in zip(stacked, adapter.tensors, strict=True))
        detach(model, spec)


# ---- an adapter folder -----------------------------------------------------------------------------------------------
def test_each_form_of_a_folder_is_the_same_function(method, tiny_base, in_warm_home, make_adapter, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    if not method.has_adapter:
        return
    located = locate(BaseModelRef(id=str(tiny_base)))
    target = "encoder.layer.1.attention.self.query"
    for number, own in enumerate(OWN[method.name]):
        possible = {name: (own.get(name, spec.default),) for name, spec in method.parameters.items()}
        changes = {**method.fields(own, possible), "method": method.name, "target_modules": (f"bert.{target}",)}
        changes["peft"] = getattr(method, "settings", None)
        folder = make_adapter(tmp_path / str(number), located, **{**changes, "init_std": 0.5})
        expected = logits(load_adapter_folder(folder, base=located))
        forms = {name for name, entry in FORMATS.importable().items() if entry.fits(method)}
        for form in {"lora", "merged"} & forms:
            made = converted(folder, form)
            model = AutoModelForSequenceClassification.from_pretrained(made if form == "merged" else tiny_base)
            model = model if form == "merged" else PeftModel.from_pretrained(model, str(made))
            torch.testing.assert_close(logits(model.eval()), expected, rtol=1e-5, atol=1e-5)
        for form in {*FORMATS.names()} - forms:
            with pytest.raises(LoraxsError, match=f"must be one of: native, .*for an adapter of method {method.name}"):
                converted(folder, form)


# ---- baselines ------------------------------------------------------------------------------------------------------
def test_the_head_alone_needs_a_task_with_one():
    with pytest.raises(UsageError, match="head-only for text-gen"):
        load_space("movie_reviews_text", overrides=["method=head-only", "parameters={learning_rate: 1.0e-3}"])


def test_baselines_are_candidates_only_where_the_rule_names_them():
    methods = "method={choice: [lora-xs, full, head-only]}"
    parameters = "parameters={rank: 4, learning_rate: 1.0e-3}"
    space = load_space("movie_reviews", overrides=[methods, parameters])
    assert [space.may_be_candidate(name) for name in space.methods] == [True, False, False]
    assert "method full trains a copy of the base" in notes(space)[0]
    named = load_space("movie_reviews", overrides=[methods, parameters, "promotion.methods=[head-only]"])
    assert [named.may_be_candidate(name) for name in named.methods] == [False, False, True]
    for given in ("[full]", "[lora-xs, lora-xs]", "7"):  # without an adapter, twice, no list
        with pytest.raises(UsageError, match=r"promotion\.methods: must"):
            load_space("movie_reviews", overrides=[methods, parameters, f"promotion.methods={given}"])


@on_llama
def test_full_fine_tuning_asks_for_the_memory_it_takes(base, monkeypatch):
    monkeypatch.setattr("loraxs_search.machine.available_bytes", lambda: 1000)
    method = METHODS.get("full")()
    with pytest.raises(UsageError, match=r"`method: full`.* 0\.0 GiB"):
        attach(base, next(specs(method, base)))

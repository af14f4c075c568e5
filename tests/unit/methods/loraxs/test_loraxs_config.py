"""The config says what is wrong all at once, and its file is the same for the same adapter.

PEFT knows LORAXS as it knows its own methods, however often it is told.
"""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from peft import PeftConfig, get_peft_config
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

from loraxs_search.errors import UsageError
from loraxs_search.methods.loraxs import LoraXSConfig, LoraXSModel, register
from loraxs_search.methods.loraxs.config import LORAXS


def test_alpha_is_another_spelling_of_scale():
    assert LoraXSConfig(r=8, loraxs_alpha=16).scale == 2.0
    assert LoraXSConfig(r=8, scale=2.0, loraxs_alpha=16).scale == 2.0
    assert LoraXSConfig(r=8).scale == 1.0
    assert LoraXSConfig(r=8, scale=0.0).scale == 0.0


def test_scale_and_alpha_that_disagree_are_refused():
    with pytest.raises(UsageError, match=r"scale=1\.0 loraxs_alpha=16 r=8"):
        LoraXSConfig(r=8, scale=1.0, loraxs_alpha=16)


def test_all_faults_come_in_one_error():
    with pytest.raises(UsageError) as caught:
        LoraXSConfig(
            r=0, sigma="inptu", basis="best", factor_driver="gpu", bias="all", init_std=-1, scale_pattern={"q": "high"}
        )
    for name in ("`r`", "`sigma`", "`basis`", "`factor_driver`", "`bias`", "`init_std`", "scale_pattern['q']"):
        assert name in caught.value.message


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"factor_rank": 8, "r": 16}, "8 < 16"),
        ({"factor_rank": 16, "rank_pattern": {"query": 32}}, "16 < 32"),
        ({"rank_pattern": {"query": 0}}, "query"),
        ({"scale": float("nan")}, "finite"),
        ({"r": 2.5}, "whole number"),
        ({"target_modules": "all-linear", "layers_to_transform": [0]}, "beside a list"),
    ],
)
def test_impossible_numbers_are_refused(wrong, match):
    with pytest.raises(UsageError, match=match):
        LoraXSConfig(**wrong)


def test_a_saved_config_is_the_same_config(tmp_path):
    config = LoraXSConfig(
        r=8,
        loraxs_alpha=4,
        sigma="sqrt",
        basis="middle",
        target_modules=["value", "query"],
        rank_pattern={"query": 2},
        modules_to_save=["classifier", "score", "classifier"],
        factor_fingerprints={"a.query": [0.1, -2.5]},
    )
    config.save_pretrained(str(tmp_path))
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["peft_type"] == "LORAXS"
    assert written["target_modules"] == ["query", "value"]
    assert written["modules_to_save"] == ["classifier", "score"]
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, LoraXSConfig)
    assert loaded.to_dict() == config.to_dict()


def test_factors_that_are_drawn_need_a_seed():
    assert LoraXSConfig(basis="gaussian", init_seed=0).basis == "gaussian"
    with pytest.raises(UsageError, match="`init_seed` must be given"):
        LoraXSConfig(basis="gaussian")


def test_the_member_behaves_as_any_other():
    assert PeftType("LORAXS") is PeftType["LORAXS"] is PeftType.LORAXS is LORAXS
    assert list(PeftType).count(LORAXS) == 1
    assert LORAXS == "LORAXS"
    assert LORAXS in PeftType
    assert LORAXS.name == LORAXS.value == "LORAXS"
    assert pickle.loads(pickle.dumps(LORAXS)) is LORAXS
    assert copy.deepcopy(LORAXS) is LORAXS
    assert len({*PeftType}) == len(PeftType)
    assert repr(LORAXS) == "<PeftType.LORAXS: 'LORAXS'>"


def test_registering_twice_is_harmless():
    register(LoraXSConfig, LoraXSModel)
    register(LoraXSConfig, LoraXSModel)
    assert PEFT_TYPE_TO_TUNER_MAPPING[LORAXS] is LoraXSModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[LORAXS] == "loraxs_"


def test_peft_builds_the_config_from_its_type():
    assert isinstance(get_peft_config({"peft_type": "LORAXS", "r": 3}), LoraXSConfig)

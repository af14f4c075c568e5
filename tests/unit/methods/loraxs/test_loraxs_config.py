"""The config says what is wrong all at once, and PEFT knows LORAXS as it knows its own methods."""

from __future__ import annotations

import copy
import importlib
import json
import pickle

import pytest
from peft import PeftConfig, get_peft_config
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

import loraxs_search.methods.loraxs
from loraxs_search.errors import UsageError
from loraxs_search.methods.loraxs import LoraXSConfig, LoraXSModel
from loraxs_search.methods.loraxs.config import LORAXS


def test_all_faults_come_in_one_error():
    wrong = {"r": 2.5, "sigma": "inptu", "basis": "best", "factor_driver": "gpu", "pooling": "auto", "init_std": -1}
    with pytest.raises(UsageError) as caught:
        LoraXSConfig(**wrong, scale=float("nan"), target_modules="all-linear", layers_to_transform=[0])
    for name in (*wrong, "scale", "layers_to_transform"):
        assert f"`{name}`" in caught.value.message
    for wrong, match in (({"factor_rank": 8, "r": 16}, "8 < 16"), ({"basis": "gaussian"}, "`init_seed`")):
        with pytest.raises(UsageError, match=match):
            LoraXSConfig(**wrong)


def test_a_saved_config_is_the_same_config(tmp_path):
    config = LoraXSConfig(
        r=8,
        scale=0.5,
        sigma="sqrt",
        basis="middle",
        target_modules=["value", "query"],
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


def test_the_member_behaves_as_any_other_and_registering_twice_is_harmless():
    assert PeftType("LORAXS") is PeftType["LORAXS"] is PeftType.LORAXS is LORAXS
    assert list(PeftType).count(LORAXS) == 1
    assert LORAXS == LORAXS.name == LORAXS.value == "LORAXS"
    assert pickle.loads(pickle.dumps(LORAXS)) is copy.deepcopy(LORAXS) is LORAXS
    assert len({*PeftType}) == len(PeftType)
    importlib.reload(loraxs_search.methods.loraxs)
    assert PEFT_TYPE_TO_TUNER_MAPPING[LORAXS] is LoraXSModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[LORAXS] == "loraxs_"
    assert isinstance(get_peft_config({"peft_type": "LORAXS", "r": 3}), LoraXSConfig)

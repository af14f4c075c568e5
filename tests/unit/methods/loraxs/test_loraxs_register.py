"""PEFT knows LORAXS as it knows its own methods, however often it is told."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

from peft import get_peft_config
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

from loraxs_search.methods.loraxs import LoraXSConfig, LoraXSModel, register
from loraxs_search.methods.loraxs._register import LORAXS


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


def test_importing_the_package_alone_loads_no_torch():
    code = "import sys, loraxs_search; sys.exit('torch' in sys.modules or 'peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""What is computed stays what it was: small bases give the numbers, answers and texts that were recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from support import engine_outputs
from support.families import families

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "engine_outputs.json").read_text())
TOLERANCE = 2e-4  # of other processors' kernels


def check(actual: Any, recorded: Any, place: str = "") -> None:
    """Assert that everything is the same, numbers within the tolerance."""
    if isinstance(recorded, dict):
        assert actual.keys() == recorded.keys(), place
        for name, value in recorded.items():
            if name.endswith(" wave") or name == "wave":  # a sum of numbers of both signs: its size is the norm's
                norm = abs(recorded[f"{name.removesuffix('wave')}norm"])
                assert math.isclose(actual[name], value, abs_tol=TOLERANCE * norm), (place, name)
            else:
                check(actual[name], value, f"{place}/{name}")
    elif isinstance(recorded, list):
        assert len(actual) == len(recorded), place
        for number, value in enumerate(recorded):
            check(actual[number], value, f"{place}/{number}")
    elif isinstance(recorded, float):
        assert math.isclose(actual, recorded, rel_tol=TOLERANCE, abs_tol=TOLERANCE), (place, actual, recorded)
    else:
        assert actual == recorded, place


@pytest.mark.parametrize("family", families(["llama", "gemma2", "gpt2"]))
def test_trials_of_a_decoder_learn_and_write_what_they_did(tmp_path, family):
    check(engine_outputs.decoder(tmp_path, family), RECORDED[family])


def test_kinds_score_and_a_bank_answers_as_they_did(tmp_path):
    check(engine_outputs.kinds(tmp_path / "base"), RECORDED["kinds"])


@pytest.mark.long(part="bases")
def test_trials_of_the_quickstart_learn_what_they_did(in_warm_home, tmp_path):
    check(engine_outputs.quickstart(tmp_path), RECORDED["quickstart"])

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.tracking._run_texts import run_name


@pytest.mark.parametrize(
    ("trial_id", "params", "name"),
    [
        (
            "00012",
            {"scale": 0.5, "learning_rate": 0.002, "target_modules": "attention", "rank": 16},
            "#12 r16 attention lr 2e-3 scale 0.5",
        ),
        ("00000", {"method": "ia3", "learning_rate": 0.0171}, "#0 ia3 lr 1.7e-2"),
        ("00003", {}, "#3"),
        ("clone-3", {"rank": 4}, "clone-3 r4"),
        ("00001", {"target_modules": "a" * 60}, f"#1 {'a' * 23}…"),
    ],
)
def test_a_name_has_number_rank_modules_and_rate_first(trial_id, params, name):
    assert run_name(trial_id, params) == name


@given(
    st.dictionaries(
        st.sampled_from(("rank", "method", "target_modules", "learning_rate", "d_initial", "head", "x" * 60)),
        st.one_of(st.integers(), st.floats(), st.text(), st.booleans()),
    )
)
def test_whatever_the_params_a_name_is_short(params):
    name = run_name("00042", params)
    assert name.startswith("#42")
    assert len(name) <= 48

"""What is stored of an adapter: rounding, the layout of the file, and that scores are of what is stored."""

from __future__ import annotations

import pytest
import torch

from loraxs_search.errors import IntegrityError
from loraxs_search.methods.stored import compact, expanded, rounded

DTYPES = ("int8", "float16", "float32")
NAMES = [f"encoder.layer.{number}.query" for number in (0, 10, 2)]  # neither the model's order nor a number's


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return an adapter with a head as PEFT names its tensors: R of very different sizes, one of them zero."""
    draw = torch.Generator().manual_seed(seed)
    made = {
        f"base_model.model.{name}.loraxs_R": torch.randn(5, 5, generator=draw) * 10.0**-i
        for i, name in enumerate(NAMES)
    }
    made[f"base_model.model.{NAMES[1]}.loraxs_R"].zero_()
    made["base_model.model.classifier.weight"] = torch.randn(3, 7, generator=draw) * torch.tensor(
        [[1.0], [1e-4], [50.0]]
    )
    return made | {"base_model.model.classifier.bias": torch.randn(3, generator=draw)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_has_the_rounded_numbers_bit_for_bit_and_rounding_them_again_changes_nothing(dtype):
    for seed in range(50):
        trained = tensors(seed)
        stored = {name: rounded(value, dtype, is_head="classifier" in name) for name, value in trained.items()}
        for source in (trained, stored):
            read = expanded(compact(source, dtype), NAMES)
            assert read.keys() == trained.keys()
            assert all(torch.equal(read[name], stored[name]) for name in stored)
        for name, value in trained.items():
            largest = value.abs().amax(-1, keepdim=True) if "classifier" in name else value.abs().max()
            step = {"int8": largest / 127, "float16": value.abs() * 2**-10 + 1e-7, "float32": torch.zeros(())}[dtype]
            wrong = (stored[name] - value).abs() - step * 0.501
            assert (wrong <= 0).all() or name.endswith("bias")
        assert torch.equal(stored["base_model.model.classifier.bias"], trained["base_model.model.classifier.bias"])


def test_a_folded_head_keeps_its_codes():
    """A head whose answers are scaled to the task's own units is rounded before and after."""
    for seed in range(50):
        weight = tensors(seed)["base_model.model.classifier.weight"]
        before = rounded(weight, "int8", is_head=True)
        after = rounded(before * 1.4868, "int8", is_head=True)
        torch.testing.assert_close(after, before * 1.4868, rtol=2e-5, atol=0)


def test_what_is_not_finite_stays_so():
    value = torch.ones(4, 4)
    for bad in (float("nan"), float("inf")):
        value[1, 2] = bad
        assert not rounded(value, "int8", is_head=False).isfinite().all()


def test_a_file_of_other_modules_or_without_its_scales_is_refused():
    made = compact(tensors(), "int8")
    with pytest.raises(IntegrityError, match="2 modules must have as many R, but its file has 3"):
        expanded(made, NAMES[:2])
    (name,) = (name for name in made if name.endswith("loraxs_R_scale"))
    with pytest.raises(IntegrityError, match=r"must have scales of shape \(3,\), but got none"):
        expanded({key: value for key, value in made.items() if key != name}, NAMES)
    with pytest.raises(IntegrityError, match=r"must have scales of shape \(3,\), but got \(2,\)"):
        expanded(made | {name: made[name][:2]}, NAMES)

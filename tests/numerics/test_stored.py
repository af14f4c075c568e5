"""What is stored of an adapter: rounding, the layout of the file, and that scores are of what is stored."""

from __future__ import annotations

import pytest
import torch

from loraxs_search.errors import IntegrityError
from loraxs_search.methods.stored import compact, expanded, rounded

DTYPES = ("int8", "float16", "float32")
# Neither the model's order nor a number's; and one begins as another does.
NAMES = ["encoder.layer.0.query", "encoder.layer.10.query", "encoder.layer.2.query", "encoder.layer.0.query-2"]


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
    made["base_model.model.classifier.conv"] = torch.randn(3, 2, 4, generator=draw)
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
            is_head = "classifier" in name
            largest = value.abs().flatten(1).amax(1).view(-1, *[1] * (value.dim() - 1)) if value.dim() > 1 else value
            half = torch.zeros(()) if is_head else value.abs() * 2**-10 + 1e-7
            whole = largest if is_head else value.abs().max()
            step = {"int8": whole / 127, "float16": half, "float32": torch.zeros(())}[dtype]
            wrong = (stored[name] - value).abs() - step * 0.501
            assert (wrong <= 0).all() or name.endswith("bias")
        assert torch.equal(stored["base_model.model.classifier.bias"], trained["base_model.model.classifier.bias"])


def test_half_of_loras_bytes_are_stored_and_its_head_whole():
    names = (
        "base_model.model.query.lora_A.weight",
        "base_model.model.query.lora_B.weight",
        "base_model.model.score.weight",
    )
    made = compact(dict.fromkeys(names, torch.ones(1, 4)), "float16")
    assert [made[name].dtype for name in names] == [torch.float16, torch.float16, torch.float32]


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
    with pytest.raises(IntegrityError, match="2 modules must have as many R, but its file has 4"):
        expanded(made, NAMES[:2])
    (name,) = (name for name in made if name.endswith("loraxs_R_scale"))
    with pytest.raises(IntegrityError, match=r"must be int8 with scales of shape \(4,\), but got none"):
        expanded({key: value for key, value in made.items() if key != name}, NAMES)
    with pytest.raises(IntegrityError, match=r"scales of shape \(4,\), but got \(2,\) beside torch.int8"):
        expanded(made | {name: made[name][:2]}, NAMES)
    with pytest.raises(IntegrityError, match=r"must be int8 .* beside torch.float32"):
        expanded({key: value if key == name else value.float() for key, value in made.items()}, NAMES)
    for bad in (-made[name], made[name] * torch.nan, made[name].half()):
        with pytest.raises(IntegrityError, match="must be float32, finite and not negative"):
            expanded(made | {name: bad}, NAMES)

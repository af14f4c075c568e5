from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bases import SMOLLM, save_language_model

from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.errors import BaseModelError
from loraxs_search.packing.capacity import check_fits
from loraxs_search.records.task import BaseModel, BaseModelRef, TaskModel

CPU = torch.device("cpu")
GIB = 2**30


def base_in(folder: Path, dtype: torch.dtype, *, declared: bool = True) -> BaseModel:
    """Save a small decoder in a precision, which its configuration declares or not."""
    save_language_model(folder, SMOLLM)
    file = folder / "model.safetensors"
    save_file({name: value.to(dtype) for name, value in load_file(file).items()}, file, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.") if declared else None
    (folder / "config.json").write_text(json.dumps(config))
    return locate(BaseModelRef(id=str(folder)))


@pytest.mark.parametrize(
    ("own", "dtype", "declared"),
    [
        (torch.float32, torch.float32, True),
        (torch.float32, torch.bfloat16, False),
        (torch.bfloat16, torch.bfloat16, False),
        (torch.float16, torch.bfloat16, True),
    ],
)
def test_what_is_counted_is_what_the_loaded_models_take(tmp_path, free, own, dtype, declared):
    base = base_in(tmp_path / "m", own, declared=declared)
    kind = TaskModel("AutoModelForCausalLM")
    models = [load_model(base, kind), *([load_model(base, kind, dtype=dtype)] if dtype != own else [])]
    assert models[0].dtype == own
    taken = sum(p.nbytes for model in models for p in model.parameters())
    free(taken)
    check_fits(base, dtype, CPU)
    free(taken - 1)
    with pytest.raises(BaseModelError):
        check_fits(base, dtype, CPU)


@pytest.fixture
def huge(tmp_path):
    """Make a base of a billion numbers, of which only the header is written."""

    def make(own: str) -> BaseModel:
        header = json.dumps({"x": {"dtype": own, "shape": [2**15, 2**15], "data_offsets": [0, 1]}}).encode()
        (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        (tmp_path / "config.json").write_text("{}")
        return BaseModel(id="org/huge", path=str(tmp_path), weight_digest="0" * 64)

    return make


@pytest.mark.parametrize(
    ("free_gib", "own", "dtype", "message", "hint"),
    [  # two copies; a copy in bfloat16 helps; nothing here helps
        (5, "BF16", torch.float32, r"6\.00 GiB as bfloat16 .*float32, and 5\.00 GiB of cpu", "set .* bfloat16, which"),
        (3, "F16", torch.bfloat16, r"4\.00 GiB as float16 and", "use a copy of the base that is saved as bfloat16"),
        (1, "BF16", torch.bfloat16, r"2\.00 GiB, .*1\.00 GiB", "use a device with more memory, or a smaller base$"),
    ],
)
def test_a_base_that_does_not_fit_says_what_it_takes_and_what_would(huge, free, free_gib, own, dtype, message, hint):
    free(free_gib * GIB)
    with pytest.raises(BaseModelError, match=message) as caught:
        check_fits(huge(own), dtype, CPU)
    assert re.match(hint, str(caught.value.hint))


def test_pickled_weights_count_as_long_as_they_are(tmp_path, free):
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(100))
    (tmp_path / "config.json").write_text("{}")
    base = BaseModel(id="org/old", path=str(tmp_path), weight_digest="0" * 64)
    free(100)
    check_fits(base, torch.bfloat16, CPU)
    free(99)
    with pytest.raises(BaseModelError, match="org/old"):
        check_fits(base, torch.bfloat16, CPU)

"""A trial that trains the output layer alone stores no other head layer, and loads to the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load
from support.families import families
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from loraxs_search.packing.host import TrialHost
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search_space.load import load_space

from .conftest import save_base


@pytest.fixture
def roberta(tmp_path: Path, tiny_base: Path) -> Path:
    folder = tmp_path / "tiny-roberta"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_base)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            pad_token_id=tokenizer.pad_token_id,
            max_position_embeddings=64,
        )
        RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def modernbert(tmp_path: Path) -> Path:
    """Its checkpoint has the norm of its head, as those of masked language models have."""
    save_base(tmp_path / "tiny-modernbert", "modernbert")
    return tmp_path / "tiny-modernbert"


STORED = {"output": 32 * 2 + 2, "full": 32 * 32 + 32 + 32 * 2 + 2}


@pytest.mark.parametrize("family", families(["roberta", "modernbert"]))
@pytest.mark.parametrize("head", ["output", "full"])
def test_what_is_stored_and_that_it_loads_in_plain_peft(
    family: str,
    head: str,
    request: pytest.FixtureRequest,
    tiny_space: Path,
    tmp_path: Path,
    in_warm_home: Path,
) -> None:
    folder = request.getfixturevalue(family)
    space = load_space(str(tiny_space), overrides=[f"base_model={folder}", f"parameters.head={head}"])
    options = {"precision": "float32", "device": "cpu"}
    host = TrialHost(space.base_model, space.task, slots=2, **options)
    params = {"rank": 4, "target_modules": "attention", "learning_rate": 1e-2, "head": head}
    hyper = replace(space.hyperparameters(params, host.info().modules, seed=1), batch_size=8)
    spec = TrialSpec("00000", params, hyper)
    report, state = host.advance(spec, 4, None)
    assert report.size.head_parameters == STORED[head]

    confirmation = host.confirm(spec, state)
    for name, content in confirmation.files.items():
        (tmp_path / name).write_bytes(content)
    names = load(confirmation.files["adapter_model.safetensors"])
    assert any("dense" in n for n in names if "classifier" in n or ".head." in n) is (head == "full")
    with torch.random.fork_rng():
        torch.manual_seed(99)  # another random head than the trial's
        base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    with torch.no_grad():
        for ids, expected in zip(confirmation.probe.input_ids, confirmation.probe.logits, strict=True):
            logits = model(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
            ).logits
            torch.testing.assert_close(logits[0], torch.tensor(expected), atol=1e-5, rtol=1e-5)

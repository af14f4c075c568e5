"""What an adapter costs is timed on rows that its base takes; a base that fails costs its candidate the place alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.bases import BART, base
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, PretrainedConfig, PreTrainedTokenizerFast

from loraxs_search.base_model import locate
from loraxs_search.factors import FactorStore
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.records import BaseModelRef
from loraxs_search.trial import latency, measure_latency

NARROW = BertConfig(
    vocab_size=40,
    hidden_size=32,
    num_attention_heads=4,
    num_hidden_layers=2,
    intermediate_size=48,
    max_position_embeddings=16,
)
MakeFolder = Callable[..., Path]


@pytest.fixture
def make_folder(make_adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeFolder:
    """Make an adapter of one module on a small base; its tokenizer knows no longest row unless it is given one."""
    monkeypatch.setattr(latency, "_AGREEMENT", 10.0)  # a busy machine is no fault of what is tested

    def make(config: PretrainedConfig, module: str, **limits: int) -> Path:
        base(config).save_pretrained(tmp_path / "base")
        words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(40)}, unk_token="w3"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1", unk_token="w3", **limits)
        tokenizer.save_pretrained(tmp_path / "base")
        with use_factor_store(FactorStore()):
            found = locate(BaseModelRef(str(tmp_path / "base")))
            return make_adapter(tmp_path / "adapter", found, rank=2, target_modules=(module,))

    return make


def test_a_base_that_wants_an_end_token_in_each_row_is_timed(make_folder: MakeFolder) -> None:
    found = measure_latency(make_folder(BART, "model.encoder.layers.0.fc1"))
    assert (found.failed, found.rows, found.tokens) == ("", 8, 64)
    assert found.ratio is not None and found.ratio > 0


def test_a_base_of_few_positions_is_timed_on_shorter_rows(make_folder: MakeFolder) -> None:
    found = measure_latency(make_folder(NARROW, "bert.encoder.layer.0.intermediate.dense"))
    assert (found.failed, found.tokens) == ("", 16)


def test_a_base_that_fails_on_the_rows_is_told_in_the_result(make_folder: MakeFolder) -> None:
    found = measure_latency(make_folder(NARROW, "bert.encoder.layer.0.intermediate.dense", model_max_length=512))
    assert found.ratio is None
    assert "RuntimeError: The expanded size of the tensor (64) must match" in found.failed

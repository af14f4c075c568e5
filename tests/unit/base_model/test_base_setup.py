"""What identifies a base beside its weights: what its tokenizer does, and the numbers of its configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.characters import CHAT, characters
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from loraxs_search.base_model import locate, tokenizer_digest, with_setup
from loraxs_search.errors import StudyError
from loraxs_search.records import BaseModel, BaseModelRef, Identity
from loraxs_search.search.hosts.identity import check_unchanged


def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    other_end, left = characters(), characters()
    left.truncation_side = "left"
    other_end.eos_token = "<|end|>"
    return {
        "plain": characters(),
        "spaces": characters(prepend="always"),
        "begins": characters(begins=True),
        "chat": characters(chat=CHAT),
        "other chat": characters(chat=CHAT + "."),
        "other end": other_end,
        "left": left,
    }


def test_a_digest_is_of_what_a_tokenizer_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    digests = {name: tokenizer_digest(tokenizer) for name, tokenizer in tokenizers().items()}
    assert len(set(digests.values())) == len(digests)
    for name, tokenizer in tokenizers().items():
        tokenizer(["a" * 9], truncation=True, max_length=5, padding="max_length")  # leaves its settings behind
        tokenizer.save_pretrained(tmp_path / name)
        again = AutoTokenizer.from_pretrained(tmp_path / name, model_max_length=16)
        assert tokenizer_digest(again) == digests[name]
    assert capfd.readouterr().err == ""


def test_a_digest_stays_what_it_was() -> None:
    assert tokenizer_digest(characters()) == "6867a832f2870ad9ef88386c5a72727f4d02e88cb5164b297614b022d718a3bb"


def test_what_differs_is_named_with_both_values(make_base: Callable[[str], BaseModel]) -> None:
    base = with_setup(make_base("llama"))
    assert base.setup is not None and with_setup(base) is base
    path = Path(base.path) / "config.json"
    config = json.loads(path.read_text())
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    path.write_text(json.dumps(config | {"rms_norm_eps": 1e-3, "rope_parameters": rope, "attention_dropout": 0.5}))
    other = with_setup(locate(BaseModelRef(base.path)))
    assert other.weight_digest == base.weight_digest and other.setup is not None
    assert base.setup.difference(base.setup) == ""
    assert base.setup.difference(other.setup) == (
        '`rms_norm_eps` 0.001, not 1e-06 and `rope_parameters.rope_type` "linear", not "default"'
    )
    newer = replace(base.setup, config={**base.setup.config, "of_a_newer_version": 1.0})
    assert base.setup.difference(newer) == newer.difference(base.setup) == ""


def test_a_study_goes_on_with_the_setup_that_it_began_with(make_base: Callable[[str], BaseModel]) -> None:
    base = make_base("llama")
    begun = Identity(base.weight_digest, "rows", with_setup(base).setup)
    characters().save_pretrained(base.path)
    now = Identity(base.weight_digest, "rows", with_setup(base).setup)
    with pytest.raises(StudyError, match="tokenizer"):
        check_unchanged("s", begun, now)
    check_unchanged("s", replace(begun, setup=None), now)  # a study of an older version

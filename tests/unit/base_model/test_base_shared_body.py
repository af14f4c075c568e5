"""Models of several classes on one body."""

from __future__ import annotations

import copy

import pytest
import torch
from support.bases import BART, DECODERS, LLAMA, base, language_model

from loraxs_search.base_model import HeadAlone, close_to, dummy_inputs, last_states, projection, rows_of, share_body
from loraxs_search.errors import BaseModelError


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_one_body_serves_a_head_and_the_output_embedding(family: str) -> None:
    writer, classifier = language_model(DECODERS[family]), base(DECODERS[family], noise=0.1)
    share_body(writer, classifier)
    assert classifier.base_model is writer.base_model
    inputs = dummy_inputs(writer, 3)
    states = writer.base_model(**inputs)
    part = {name: value[:2] for name, value in inputs.items()}
    assert close_to(HeadAlone(classifier)(part, rows_of(states, 0, 2)), classifier(**inputs).logits[:2], 1e-5)


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_a_tied_output_embedding_is_the_shared_body_s(family: str) -> None:
    writer, classifier = language_model(DECODERS[family]), base(DECODERS[family], noise=0.1)
    share_body(classifier, writer)
    tied = writer.get_output_embeddings().weight is classifier.get_input_embeddings().weight
    assert tied == bool(writer.config.tie_word_embeddings)
    inputs = dummy_inputs(writer)
    assert close_to(projection(writer)(last_states(classifier, inputs)), writer(**inputs).logits.float(), 1e-5)


def test_another_body_is_refused() -> None:
    with pytest.raises(BaseModelError, match="have the bodies BartModel and BartDecoderWrapper"):
        share_body(language_model(BART), base(BART))


def test_a_body_of_other_settings_is_refused() -> None:
    other = copy.deepcopy(LLAMA)
    other.rms_norm_eps = 0.1
    with pytest.raises(BaseModelError, match="configured with different rms_norm_eps"):
        share_body(language_model(LLAMA), base(other))

"""What a head reads of its base, however rows are padded; which bases and layers may serve rows of many trials."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bases import BART, BERT, LLAMA, SMALL, XLNET, base, byte_tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model import reading, sharing
from loraxs_search.base_model.layers import head_names
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.reading import place_pooling, pooling_of, resolved_pooling
from loraxs_search.base_model.sharing import probe_sharing
from loraxs_search.base_model.tokenizer import padding_side
from loraxs_search.records.codec import Pooling
from loraxs_search.tasks.kinds import classifier

IDS = [[5, 6, 7, 8, 9], [10, 11, 12]]
POOLED: list[Pooling] = ["cls", "mean", "last"]


def rows(width: int, side: str = "right") -> dict[str, Tensor]:
    """Return rows of 5 and 3 tokens, padded to a width."""
    padded = [[0] * (width - len(own)) + own if side == "left" else own + [0] * (width - len(own)) for own in IDS]
    real = [[int(token > 0) for token in own] for own in padded]
    return {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(real)}


@torch.no_grad()
def logits(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    found: Tensor = model(**inputs).logits
    return found


@pytest.mark.parametrize("pooling", POOLED)
def test_every_heads_input_is_the_pool_of_the_rows_own_tokens(pooling, make_base, family):
    """Each row alone, without padding, gives what it gives beside others; and the numbers are those of its states."""
    base = make_base(family)
    model = load_model(base, classifier(3, pooling))
    assert pooling_of(model) == pooling
    together = logits(model, rows(9))
    for index, ids in enumerate(IDS):
        alone = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        torch.testing.assert_close(logits(model, alone), together[index : index + 1], atol=1e-5, rtol=1e-4)
        place_pooling(model, "class")
        states = model.base_model(**alone)[0]
        place_pooling(model, pooling)
        read = model.base_model(**alone)
        expected = {"cls": states[:, 0], "mean": states.mean(1), "last": states[:, -1]}[pooling]
        torch.testing.assert_close(read[0], expected[:, None].expand_as(states))
        if "pooler_output" in read:
            torch.testing.assert_close(read.pooler_output, expected)
    assert not torch.allclose(together[0], together[1], atol=1e-4)


def test_pools_do_not_depend_on_the_side_of_padding():
    states = torch.randn(2, 9, 4)
    for side in ("left", "right"):
        mask = rows(9, side)["attention_mask"]
        own = [states[row][mask[row].bool()] for row in range(2)]
        expected: dict[Pooling, Tensor] = {
            "cls": torch.stack([x[0] for x in own]),
            "mean": torch.stack([x.mean(0) for x in own]),
            "last": torch.stack([x[-1] for x in own]),
        }
        for pooling, value in expected.items():
            torch.testing.assert_close(reading.pool(states, mask, pooling), value)


def test_class_leaves_a_base_as_it_is_and_a_second_call_replaces_the_first(make_base):
    base, inputs = make_base("bert"), rows(6)
    plain = logits(load_model(base, classifier(2)), inputs)
    model = load_model(base, classifier(2, "mean"))
    mean = logits(model, inputs)
    assert not torch.allclose(mean, plain, atol=1e-4)
    place_pooling(model, "mean")
    place_pooling(model, "mean")
    assert torch.equal(logits(model, inputs), mean)
    copied = copy.deepcopy(model)
    place_pooling(model, "class")
    assert torch.equal(logits(model, inputs), plain)
    assert torch.equal(logits(copied, inputs), mean)
    half = load_model(base, classifier(2, "mean"), dtype=torch.bfloat16)
    assert half.base_model(**inputs)[0].dtype == torch.float32, "a pool is taken in float32"


def test_rows_of_one_batch_may_be_read_each_in_its_way(make_base, family):
    base, inputs = make_base(family), rows(7)
    model = load_model(base, classifier(2))
    expected = []
    for index, pooling in enumerate(["mean", "class"]):
        place_pooling(model, pooling)  # type: ignore[arg-type]
        expected.append(logits(model, inputs)[index])
    place_pooling(model, "class", lambda: [(1, "mean"), (1, "class")])
    torch.testing.assert_close(logits(model, inputs), torch.stack(expected), atol=1e-5, rtol=1e-4)


# ---- what a base was trained with ------------------------------------------------------------------------------------
def encoder(folder: Path, **pooling: Any) -> None:
    """Make a folder one of sentence-transformers, with this configuration of its pooling."""
    parts = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{part}"}
        for i, (part, path) in enumerate(parts.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False}


@pytest.mark.parametrize(
    ("name", "given", "expected", "said"),
    [
        ("bert", MEAN, "mean", ""),
        ("bert", MEAN | {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls", ""),
        ("bert", {"pooling_mode_lasttoken": True}, "last", ""),
        ("bert", {"pooling_mode": "mean", "include_prompt": True}, "mean", ""),
        ("llama", {"pooling_mode_lasttoken": True}, "class", ""),  # which reads the last token
        ("modernbert", MEAN, "mean", ""),
        ("modernbert", {"pooling_mode_cls_token": True}, "class", ""),  # as its configuration says
        ("bert", {"pooling_mode_max_tokens": True}, "class", "max"),  # no pool of ours
        ("bert", MEAN | {"pooling_mode_cls_token": True}, "class", "cls and mean"),
    ],
)
def test_auto_is_what_a_sentence_encoders_folder_says(name, given, expected, said, make_base):
    base = make_base(name)
    assert resolved_pooling("auto", base) == ("class", "")
    encoder(Path(base.path), **given)
    pooling, note = resolved_pooling("auto", base)
    assert (pooling, said in note, bool(note)) == (expected, True, bool(said))


@pytest.mark.parametrize("pads", [True, False])
def test_a_decoder_whose_texts_end_in_the_padding_token_is_pooled(pads, make_base):
    """Its class reads the token before that one, since it looks for the last one that is not padding.

    A tokenizer without a padding token pads with the one that ends texts.
    """
    base = make_base("llama")
    tokenizer = byte_tokenizer()
    if not pads:
        tokenizer.pad_token = None
        config = AutoConfig.from_pretrained(base.path)
        config.pad_token_id = None
        config.save_pretrained(base.path)
    pad = (tokenizer.pad_token, tokenizer.pad_token_id) if pads else (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"$A {pad[0]}", None, [pad])
    tokenizer.save_pretrained(base.path)
    encoder(Path(base.path), pooling_mode_lasttoken=True)
    assert resolved_pooling("auto", base) == ("last", "")


def test_what_a_class_reads_by_its_configuration_is_left_to_it(make_base):
    base = make_base("modernbert")
    config = AutoConfig.from_pretrained(base.path)
    config.classifier_pooling = "mean"
    config.save_pretrained(base.path)
    encoder(Path(base.path), **MEAN)
    assert resolved_pooling("auto", base) == ("class", "")
    own, pooled = (logits(load_model(base, classifier(2, way)), rows(7)) for way in ("class", "mean"))
    torch.testing.assert_close(own, pooled, atol=1e-5, rtol=1e-4)


def test_the_quickstarts_base_was_trained_with_its_mean(quickstart_base):
    assert resolved_pooling("auto", quickstart_base) == ("mean", "")
    assert [resolved_pooling(given, quickstart_base)[0] for given in ("class", "cls")] == ["class", "cls"]
    assert pooling_of(load_model(quickstart_base, classifier(2, "auto"))) == "mean"


# ---- model reading ---------------------------------------------------------------------------------------------------
def test_segments_that_one_batch_lacks_are_zero_in_its_rows():
    segmented = {"input_ids": torch.tensor([[5, 6]]), "token_type_ids": torch.tensor([[0, 1]])}
    plain = {"input_ids": torch.tensor([[7, 8, 9]])}
    for parts, types in (([segmented, plain], [[0, 1, 0], [0, 0, 0]]), ([plain, segmented], [[0, 0, 0], [0, 1, 0]])):
        inputs = reading.joined(parts, 3, 2, "right")
        assert inputs["token_type_ids"].tolist() == types
    assert inputs["input_ids"].tolist() == [[7, 8, 9], [5, 6, 2]]


LOGITS = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def test_results_are_alike_up_to_rounding_where_they_tell_rows_apart():
    assert reading.close_to(LOGITS, LOGITS)
    assert reading.close_to(LOGITS.bfloat16().float(), LOGITS)
    assert reading.close_to(LOGITS[:, :1], LOGITS[:, :1])
    for other in (LOGITS * 1.02, LOGITS.flip(0), LOGITS[:, :1]):
        assert not reading.close_to(other, LOGITS)
    alike, nearly = LOGITS[:1].expand(2, 2), LOGITS[:1] + LOGITS * 1e-4
    for logits in (torch.zeros(2, 2), alike, nearly, LOGITS * torch.nan, LOGITS * torch.inf):
        assert not reading.close_to(logits, logits)
    assert reading.rounding(base(BERT)) < 1e-3 < reading.rounding(base(BERT).bfloat16())


# ---- sharing: what was not seen to be safe is not --------------------------------------------------------------------
config_of = AutoConfig.for_model
RELATIVE = SMALL | {"relative_attention": True}
SHARED_POSITIONS = config_of("deberta-v2", **RELATIVE, pos_att_type=["c2p", "p2c"], share_att_key=True)
OWN_POSITIONS = config_of("deberta-v2", **RELATIVE, pos_att_type=["c2p"])
GPT2_PADDED_WITH_ITS_END = config_of(
    "gpt2", vocab_size=40, n_embd=32, n_layer=2, n_head=4, pad_token_id=5, bos_token_id=5, eos_token_id=5
)
LONG = SMALL | {"max_position_embeddings": 64, "sep_token_id": 2}
LONGFORMER = config_of("longformer", **LONG, attention_window=8, pad_token_id=1)
SPARSE = config_of("big_bird", **LONG, attention_type="block_sparse", block_size=4)


def layers_of(model: PreTrainedModel) -> list[str]:
    heads = head_names(model)
    linears = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    return [name for name in linears if name.split(".")[0] not in heads and any(map(str.isdigit, name.split(".")))]


@pytest.mark.parametrize(
    ("config", "dtype", "endings"),
    [
        (BERT, torch.float32, ()),
        (LLAMA, torch.bfloat16, ()),
        (GPT2_PADDED_WITH_ITS_END, torch.float32, ()),
        (BART, torch.bfloat16, ()),
        (SHARED_POSITIONS, torch.float32, ("query_proj", "key_proj")),
        (OWN_POSITIONS, torch.bfloat16, ("pos_key_proj",)),
        (XLNET, torch.float32, ("layer_1", "layer_2")),
        (LONGFORMER, torch.bfloat16, ("query", "key", "value", "query_global", "key_global", "value_global")),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_layers_that_are_given_positions_or_tokens_before_rows(config, dtype, endings):
    model = base(config, noise=0.1).to(dtype)
    names = layers_of(model)
    assert len(names) >= 4
    found = probe_sharing(model, names)
    assert found.fault == ""
    assert found.unpackable == {name for name in names if endings and name.split(".")[-1] in endings}


def test_a_base_whose_rows_depend_on_their_padding_shares_no_pass():
    convolved = base(config_of("convbert", **SMALL, embedding_size=32), noise=0.1)
    assert probe_sharing(convolved, ()).fault == "what a row gives depends on its padding"


def test_a_head_that_reads_the_last_position_is_given_a_token_there(monkeypatch):
    model = base(XLNET, noise=0.1)
    assert probe_sharing(model, ()).fault == ""
    first = copy.deepcopy(XLNET)
    first.summary_type = "first"
    assert padding_side(first) == padding_side(BERT) == "right"
    monkeypatch.setattr("loraxs_search.base_model.reading.padding_side", lambda _: "right")
    monkeypatch.setattr(sharing, "padding_side", lambda _: "right")
    assert probe_sharing(model, ()).fault == "what a row gives depends on its padding"


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda x: x, ""),
        (lambda x: x + 0.01 * x.mean(1, keepdim=True), "what a row gives depends on its padding"),
        (lambda x: x + 0.01 * x.mean(0, keepdim=True), "what a row gives depends on the rows beside it"),
        (lambda x: x + 0.01 * x.shape[1] * x[:, :1].roll(1, -1), "what a row gives depends on its padding"),
    ],
    ids=["nothing", "padding", "company", "width"],
)
def test_one_part_in_a_hundred_is_seen(spoil, fault):
    model = base(BERT, noise=0.1)
    model.bert.pooler.register_forward_pre_hook(lambda _, args: (spoil(args[0]),))
    assert probe_sharing(model, ()).fault == fault


def test_a_layer_that_is_given_some_tokens_of_each_row_or_is_never_called_is_unpackable():
    class Expert(nn.Sequential):
        """As a router may."""

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.pad(self[0](x[:, 0])[:, None], (0, 0, 0, x.shape[1] - 1))

    model = base(BERT, noise=0.1)
    dense = model.bert.encoder.layer[0].intermediate
    dense.dense = Expert(dense.dense)
    model.bert.encoder.layer[0].spare = nn.Linear(32, 32)
    layer = "bert.encoder.layer.0"
    unfit = {f"{layer}.intermediate.dense.0", f"{layer}.spare"}
    assert probe_sharing(model, [*unfit, f"{layer}.output.dense"]).unpackable == unfit


def test_of_a_base_that_cannot_be_probed_nothing_is_packable():
    model = base(SPARSE)
    names = layers_of(model)
    found = probe_sharing(model, names)
    assert found.unpackable == set(names)
    assert found.fault.startswith("it takes no made-up rows (ValueError: `attention_type` must not be block_sparse")
    assert model.config.attention_type == "block_sparse"


def test_a_head_that_is_given_more_than_rows_shares_no_pass():
    model = base(BERT, noise=0.1)
    head, own = model.classifier, model.classifier.forward
    head.forward = lambda x, lengths=None: own(x)
    assert probe_sharing(model, ()).fault == ""
    head.register_forward_pre_hook(lambda _, args: (*args, torch.ones(len(args[0]))))
    assert probe_sharing(model, ()).fault == "its head classifier is given something else than the batch's rows"

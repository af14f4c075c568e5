from __future__ import annotations

import ast
import re
from dataclasses import replace

import yaml
from support.toy_language import choosing, writing
from support.toys import HYPERPARAMETERS, manifest_of

from loraxs_search.manifest import Manifest
from loraxs_search.records.search import Baseline, Refit, SliceScore
from loraxs_search.records.task import BaseModelRef
from loraxs_search.records.trial import AdapterSize, PeftSettings
from loraxs_search.registry.card import model_card

from .conftest import TASK


def manifest(**other) -> Manifest:
    fields = {
        "validation_metrics": {"accuracy": 0.81, "f1": 0.8},
        "test_metrics": {"accuracy": 0.8},
        "size": AdapterSize(r_parameters=32, head_parameters=10, stored_bytes=400),
        "task": TASK,
        "base_model": BaseModelRef(id="org/base", revision="abc123"),
        "hyperparameters": HYPERPARAMETERS,
    }
    return manifest_of(**fields | other)


def blocks(card: str) -> list[str]:
    """The code of a card, which Python can read."""
    found = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    for block in found:
        ast.parse(block)
    return found


def test_the_card_says_task_scores_size_and_origin():
    constant = Baseline("constant", {"accuracy": 0.55}, {"accuracy": 0.5}, answer=1)
    card = model_card(
        manifest(
            lora_parameters=6400,
            base_bytes=80_000,
            refits=(Refit(1, {"accuracy": 0.79}), Refit(2, failed="diverged")),
            baselines=(constant, Baseline("tfidf", {"accuracy": 0.79}, {"accuracy": 0.78})),
            slices=(SliceScore("source", "a|b\nc", 1200, 0.75), SliceScore("source", "", 3, None)),
        )
    )
    for part in (
        "| accuracy | 0.8000 | 0.8100 | 0.8000 ± 0.0141 |",
        "| f1 | - | 0.8000 | 0.8000 |",
        "1 of them diverged (accuracy 0.7900)",
        "| base model | 80,000 bytes, 200 times what is stored |",
        "| stored, R and head | 400 bytes |",
        "6,400 parameters, 200 times R",
        "Data: `train.jsonl.gz`, fingerprint",  # it is handed out, and names no folder of the machine it was made on
        "| always positive | 0.5000 |",
        "| TF-IDF of the texts, linear model | 0.7800 |",
        "| source=a&#124;b c | 1,200 | 0.7500 |\n",
        "| source=(none) | 3 | - |\n",
    ):
        assert part in card
    assert yaml.safe_load(card.split("---")[1]) == {
        "base_model": "org/base",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["lora-xs"],
    }
    assert "It was not scored on the test rows" in model_card(manifest(test_metrics={}))


def test_its_code_is_python():
    load, peft = blocks(model_card(manifest()))
    assert 'load_adapter("movie-reviews")' in load
    assert 'labels = ["negative", "positive"]' in peft
    assert 'revision="abc123"' in peft
    odd = replace(TASK, labels=('so "so"', "schön \U0001f600"))
    labels = re.search(r"labels = (.*)", model_card(manifest(task=odd)))[1]
    assert ast.literal_eval(labels) == list(odd.labels)
    number = model_card(manifest(task=replace(TASK, kind="regression", labels=())))
    assert "num_labels=1, ignore_mismatched_sizes=True" in number
    pair = replace(TASK, text="first", text_pair="second")
    assert r'the second one begins with "\n".' in model_card(manifest(task=pair))


# ---- adapters without a head -----------------------------------------------------------------------------------------
def test_the_card_of_one_that_writes_says_how_it_is_asked():
    task = writing(prompt="Question: {question}\nAnswer:", generation={"max_new_tokens": 64, "stop": ["\nQuestion:"]})
    card = model_card(manifest(task=task))
    assert "```text\nQuestion: {question}\nAnswer:\n```" in card
    assert "after 64 tokens or before" in card
    assert "| stored, R alone | 400 bytes |" in card
    load, _, ask = blocks(card)
    assert 'loraxs_search.predict("turned-words", ["<question>"])' in load
    assert r"prompt = 'Question: <question>\nAnswer:'" in ask
    assert "max_new_tokens=64, do_sample=False, eos_token_id=tokenizer.eos_token_id)" in ask
    assert r"stop_strings=['\nQuestion:']" in ask
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{question}"}]
    task = writing(generation={"max_new_tokens": 8, "stop": [], "temperature": 0.5, "top_p": 0.9, "seed": 1})
    settings = {key: value for key, value in task.settings.items() if key != "prompt"} | {"messages": messages}
    card = model_card(manifest(task=replace(task, settings=settings), ends=("[TURN]", "[END]")))
    assert "system: Be brief.\n\nuser: {question}" in card
    ask = blocks(card)[-1]
    assert "apply_chat_template" in ask
    assert "do_sample=True, temperature=0.5, top_p=0.9, top_k=0" in ask
    assert "eos_token_id=tokenizer.convert_tokens_to_ids(['[TURN]', '[END]'])" in ask
    assert "## Prompt" not in model_card(manifest(task=choosing()))


# ---- where the base is from, and other methods -----------------------------------------------------------------------
def test_code_for_a_base_of_a_package_finds_its_weights_and_not_the_hubs():
    made = manifest(task=writing(), base_model=BaseModelRef("org/base", package="some-model"), base_digest="d" * 64)
    peft = blocks(model_card(made))[1]
    assert f'locate(BaseModelRef("org/base", package="some-model", sha256="{"d" * 64}")).path' in peft
    assert peft.count(".from_pretrained(folder)") == 2
    assert 'from_pretrained("org/base"' not in peft


def test_the_card_of_another_method_says_what_was_learnt_and_its_own_rank():
    settings = PeftSettings("VERA", {"d_initial": 0.1}, {"r": "int"})
    tuned = replace(manifest().hyperparameters, method="mine", rank=0, method_params={"r": 100}, peft=settings)
    card = model_card(manifest(hyperparameters=tuned, size=AdapterSize(1_000, 66, 90_000, without_projection=5_000)))
    for part in ("VERA adapter for `", "modules with r 100, ", "gives back | 5,000 bytes |"):
        assert part in card
    assert "plain LoRA, for vLLM" not in card
    assert "gives back" not in model_card(manifest())

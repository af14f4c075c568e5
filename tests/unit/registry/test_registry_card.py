from __future__ import annotations

import ast
import re
from dataclasses import replace

from support.toy_language import choosing, writing

from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.promotion import Baseline, Refit, SliceScore
from loraxs_search.records.trial import AdapterSize, PeftSettings
from loraxs_search.registry.card import model_card

REFITS = (Refit(1, {"accuracy": 0.79}), Refit(2, failed="diverged"))


def test_the_card_says_task_scores_size_and_origin(manifest):
    card = model_card(manifest("t7", lora_parameters=6400, base_bytes=80_000, refits=REFITS))
    assert "| accuracy | 0.8000 | 0.8100 | 0.8000 ± 0.0141 |" in card
    assert "| f1 | - | 0.8000 | 0.8000 |" in card
    assert "from 2 other seeds, 1 of them diverged (accuracy 0.7900)" in card
    assert "| base model | 80,000 bytes, 200 times what is stored |" in card
    assert "| R (trained between frozen factors) | 32 parameters |" in card
    assert "| stored, R and head | 400 bytes |" in card
    assert "6,400 parameters, 200 times R" in card
    assert "negative, positive" in card
    assert "Trial `t7` of study `s1`" in card
    assert "| learning_rate | 0.001 |" in card
    assert "train.jsonl.gz" in card
    assert "it was scored on them once, alone" in card
    assert "It was not scored on the test rows" in model_card(manifest(test_metrics={}))
    assert "/data/" not in card  # a card is handed out: it names no folder of the machine it was made on


def test_the_card_has_baselines_beside_the_adapters_score(manifest):
    constant = Baseline("constant", {"accuracy": 0.55}, {"accuracy": 0.5}, answer=1)
    tfidf = Baseline("tfidf", {"accuracy": 0.79}, {"accuracy": 0.78})
    card = model_card(manifest(baselines=(constant, tfidf, Baseline("features", failed="too slow"))))
    assert "| on the same test rows | accuracy |" in card
    assert "| this adapter | 0.8000 |" in card
    assert "| always positive | 0.5000 |" in card
    assert "| TF-IDF of the texts, linear model | 0.7800 |" in card
    assert "| the untouched base's features of 500 train rows, linear model | - |" in card
    assert "on the same test rows" not in model_card(manifest())


def test_the_card_has_the_score_of_each_slice(manifest):
    slices = (SliceScore("source", "a|b\nc", 1200, 0.75), SliceScore("source", "", 3, None))
    card = model_card(manifest(slices=slices))
    assert (
        "| slice of the test rows | rows | accuracy |\n|---|---|---|\n| source=a&#124;b c | 1,200 | 0.7500 |\n" in card
    )
    assert "| source=(none) | 3 | - |\n" in card
    assert "slice of the test rows" not in model_card(manifest())


def test_its_front_matter_is_what_hubs_read(manifest):
    import yaml

    matter = model_card(manifest()).split("---")[1]
    assert yaml.safe_load(matter) == {
        "base_model": "org/base",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["lora-xs"],
    }


def test_its_code_is_python_in_a_few_lines(manifest, task):
    blocks = re.findall(r"```python\n(.*?)```", model_card(manifest()), flags=re.S)
    assert len(blocks) == 2
    for block in blocks:
        ast.parse(block)
        assert len(block.strip().splitlines()) <= 5
    assert 'load_adapter("movie-reviews")' in blocks[0]
    assert 'labels = ["negative", "positive"]' in blocks[1]
    assert 'revision="abc123"' in blocks[1]
    odd = replace(task, labels=('so "so"', "schön \U0001f600"))
    labels = re.search(r"labels = (.*)", model_card(manifest(task=odd)))[1]
    assert ast.literal_eval(labels) == list(odd.labels)
    number = model_card(manifest(task=replace(task, kind="regression", labels=())))
    assert 'num_labels=1, ignore_mismatched_sizes=True, dtype="float32", revision="abc123")' in number


def test_the_card_says_what_stands_between_two_texts(manifest):
    task = replace(manifest().task, text="first", text_pair="second")
    between = r'nothing between first and second, the second one begins with "\n".'
    assert between in model_card(manifest(task=task))
    assert between not in model_card(manifest(task=replace(task, text_pair=None)))


# ---- adapters without a head -----------------------------------------------------------------------------------------
def test_the_card_of_one_that_writes_says_how_it_is_asked(manifest):
    generation = {"max_new_tokens": 64, "stop": ["\nQuestion:"]}
    task = writing(prompt="Question: {question}\nAnswer:", generation=generation)
    card = model_card(manifest(task=task))
    assert "# turned-words" in card
    assert "pipeline_tag: text-generation" in card
    assert "```text\nQuestion: {question}\nAnswer:\n```" in card
    assert (
        'the likeliest token each time, and end at the end token, or after 64 tokens or before `"\\nQuestion:"`.'
        in card
    )
    assert "| stored, R alone | 400 bytes |" in card
    assert "| head |" not in card
    assert "`loraxs-search pull turned-words --format lora`, and for llama.cpp and Ollama `--format gguf`." in card
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    assert 'loraxs_search.predict("turned-words", ["<question>"])' in blocks[0]
    assert "AutoModelForCausalLM.from_pretrained" in blocks[1]
    assert r"prompt = 'Question: <question>\nAnswer:'" in blocks[2]
    assert "GenerationConfig(max_new_tokens=64, do_sample=False, eos_token_id=tokenizer.eos_token_id)" in blocks[2]
    assert r"generate(**inputs, stop_strings=['\nQuestion:'], tokenizer=tokenizer)" in blocks[2]
    for block in blocks:
        ast.parse(block)


def test_messages_and_drawn_answers_are_said_as_well(manifest):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{question}"}]
    task = writing(generation={"max_new_tokens": 8, "stop": [], "temperature": 0.5, "top_p": 0.9, "seed": 1})
    settings = {key: value for key, value in task.settings.items() if key != "prompt"} | {"messages": messages}
    card = model_card(manifest(task=replace(task, settings=settings), ends=("[TURN]", "[END]")))
    assert "system: Be brief.\n\nuser: {question}" in card
    assert "drawn at temperature 0.5" in card
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", card, flags=re.S) if "generate" in block]
    ast.parse(code)
    assert "apply_chat_template" in code
    assert "do_sample=True, temperature=0.5, top_p=0.9, top_k=0" in code
    assert "eos_token_id=tokenizer.convert_tokens_to_ids(['[TURN]', '[END]'])" in code
    assert "end at `[TURN]` or `[END]`, or after 8 tokens" in card


def test_the_card_of_one_that_chooses_has_no_prompt(manifest):
    card = model_card(manifest(task=choosing()))
    assert "## Prompt" not in card
    assert "model.generate" not in card


# ---- where the base is from ------------------------------------------------------------------------------------------
def test_code_for_a_base_of_a_package_finds_its_weights_and_not_the_hubs(manifest):
    made = manifest(task=writing(), base_model=BaseModelRef("org/base", package="some-model"), base_digest="d" * 64)
    card = model_card(made)
    assert "where the Python package `some-model` is installed. The base's weights are those in it" in card
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.S)
    assert f'locate(BaseModelRef("org/base", package="some-model", sha256="{"d" * 64}")).path' in blocks[1]
    assert "AutoModelForCausalLM.from_pretrained(folder)" in blocks[1]
    assert "AutoTokenizer.from_pretrained(folder)" in blocks[1]
    assert 'from_pretrained("org/base"' not in card
    for block in blocks:
        ast.parse(block)


def test_the_card_of_another_method_says_what_was_learnt_and_its_own_rank(manifest):
    settings = PeftSettings("VERA", {"d_initial": 0.1}, {"r": "int"})
    tuned = replace(manifest().hyperparameters, method="mine", rank=0, method_params={"r": 100}, peft=settings)
    size = AdapterSize(1_000, 66, 90_000, without_projection=5_000)
    card = model_card(manifest(hyperparameters=tuned, size=size))
    assert "VERA adapter for `" in card
    assert " modules with r 100, " in card
    assert "| stored, adapter and head | 90,000 bytes |" in card
    assert "| learnt bytes, which no seed and no base gives back | 5,000 bytes |" in card
    assert "plain LoRA, for vLLM" not in card
    assert "gives back" not in model_card(manifest())

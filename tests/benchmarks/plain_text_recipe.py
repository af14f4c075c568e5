"""A search for an adapter that writes, written plainly from the libraries' own manuals: see `bench_text_search.py`.

Ray Tune runs a function for each trial, two at a time with one thread each. The function loads the base, decomposes
every weight, wraps it in a PEFT adapter and hands it to transformers' `Trainer`, which pads the rows of a batch and
computes logits at every position. Only the answer's tokens count in the loss. Proposals given as `points` come first.

    python tests/benchmarks/plain_text_recipe.py '{"data": "FOLDER", "trials": 4, "steps": 24, ...}'    # prints JSON
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plain_recipe import search


def encoded(tokenizer: Any, rows: dict[str, list[str]], max_length: int) -> dict[str, list[list[int]]]:
    """Return token ids and labels of prompts and answers, -100 where nothing is learnt."""
    ids, labels = [], []
    for question, answer in zip(rows["question"], rows["answer"], strict=True):
        prompt = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
        learnt = [*tokenizer(f" {answer}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids.append([*prompt, *learnt][:max_length])
        labels.append([*[-100] * len(prompt), *learnt][:max_length])
    return {"input_ids": ids, "labels": labels}


def train(config: dict[str, Any]) -> None:
    """Train and score one trial."""
    from datasets import load_dataset
    from peft import get_peft_model
    from ray import tune
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    import loraxs_search  # noqa: F401  # makes LORAXS known to PEFT
    from loraxs_search.factors import FactorStore
    from loraxs_search.methods.loraxs import LoraXSConfig, use_factor_store

    files = {split: f"{config['data']}/{split}.jsonl" for split in ("train", "validation")}
    tokenizer = AutoTokenizer.from_pretrained(config["base"])
    data = load_dataset("json", data_files=files)
    data = data.map(
        lambda rows: encoded(tokenizer, rows, config["max_length"]),
        batched=True,
        remove_columns=data["train"].column_names,
    )
    model = AutoModelForCausalLM.from_pretrained(config["base"], dtype="auto")
    adapter = LoraXSConfig(
        task_type="CAUSAL_LM",
        r=config["rank"],
        scale=1.0,
        target_modules=[n for n, m in model.named_modules() if type(m).__name__ == "Linear" and n != "lm_head"],
        factor_driver="randomized",
    )
    with tempfile.TemporaryDirectory() as nothing_cached, use_factor_store(FactorStore(Path(nothing_cached))):
        adapted = get_peft_model(model, adapter)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=config["batch_size"],
            per_device_eval_batch_size=config["batch_size"],
            max_steps=config["steps"],
            learning_rate=config["learning_rate"],
            weight_decay=0.0,
            warmup_steps=0.06,
            seed=config["seed"],
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            prediction_loss_only=True,
            use_cpu=not config["gpu"],
        )
        trainer = Trainer(
            model=adapted,
            args=arguments,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        started = time.perf_counter()
        trainer.train()
        train_s = time.perf_counter() - started
        scores = trainer.evaluate()
    tune.report({"loss": scores["eval_loss"], "train_s": train_s})


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("RAY_worker_niceness", "0")
    print(json.dumps(search(json.loads(sys.argv[1]), train, "loss", "min", ("learning_rate",))))

"""The search as one would write it from the libraries' own manuals: the other side of `bench_search.py`.

Ray Tune runs a function for each trial, two at a time with one thread each. The function loads the base, decomposes
every weight, wraps it in a PEFT adapter and hands it to transformers' `Trainer`; Optuna proposes the learning rates,
Ray's own callback writes to MLflow. The decomposition is the fast randomised one, done anew by each trial. Proposals
given as `points` come first.

    python tests/benchmarks/plain_recipe.py '{"data": "FOLDER", "trials": 12, "steps": 96, ...}'    # prints JSON
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def train(config: dict[str, Any]) -> None:
    """Train and score one trial."""
    import numpy as np
    from datasets import load_dataset
    from peft import get_peft_model
    from ray import tune
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    import loraxs_search  # noqa: F401  # makes LORAXS known to PEFT
    from loraxs_search.factors.store import FactorStore
    from loraxs_search.methods.loraxs import LoraXSConfig, use_factor_store

    files = {split: f"{config['data']}/{split}.jsonl.gz" for split in ("train", "validation")}
    tokenizer = AutoTokenizer.from_pretrained(config["base"])
    data = load_dataset("json", data_files=files).map(
        lambda rows: tokenizer(rows["sentence"], truncation=True, max_length=config["max_length"]), batched=True
    )
    model = AutoModelForSequenceClassification.from_pretrained(config["base"], num_labels=2)
    modules = [n for n, m in model.named_modules() if type(m).__name__ == "Linear" and ".encoder." in f".{n}"]
    adapter = LoraXSConfig(
        task_type="SEQ_CLS", r=config["rank"], scale=1.0, target_modules=modules, factor_driver="randomized"
    )
    with tempfile.TemporaryDirectory() as nothing_cached, use_factor_store(FactorStore(Path(nothing_cached))):
        model = get_peft_model(model, adapter)
    head = [p for n, p in model.named_parameters() if p.requires_grad and "loraxs_R" not in n]
    core = [p for n, p in model.named_parameters() if p.requires_grad and "loraxs_R" in n]

    class TwoRates(Trainer):
        def create_optimizer(self, model: Any = None) -> Any:
            import torch

            rates = ((core, config["learning_rate"]), (head, config["head_learning_rate"]))
            self.optimizer = torch.optim.AdamW([{"params": p, "lr": lr} for p, lr in rates], weight_decay=0.0)
            return self.optimizer

    def accuracy(prediction: Any) -> dict[str, float]:
        return {"accuracy": float((np.argmax(prediction.predictions, -1) == prediction.label_ids).mean())}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=config["batch_size"],
            per_device_eval_batch_size=64,
            max_steps=config["steps"],
            warmup_steps=0.06,
            seed=config["seed"],
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            use_cpu=not config["gpu"],
        )
        trainer = TwoRates(
            model=model,
            args=arguments,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy,
        )
        started = time.perf_counter()
        trainer.train()
        train_s = time.perf_counter() - started
        scores = trainer.evaluate()
    tune.report({"accuracy": scores["eval_accuracy"], "train_s": train_s})


def search(config: dict[str, Any]) -> dict[str, Any]:
    """Run all trials; return their scores and the wall time of the whole. `config` has bounds of both rates."""
    started = time.perf_counter()
    import ray
    from ray import tune
    from ray.air.integrations.mlflow import MLflowLoggerCallback
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    space = {
        **{name: config[name] for name in ("data", "base", "rank", "steps", "batch_size", "max_length", "gpu")},
        "seed": tune.randint(0, 2**31),
        **{name: tune.loguniform(*config[name]) for name in ("learning_rate", "head_learning_rate")},
    }
    resources = {"cpu": 1, "gpu": 0.5 if config["gpu"] else 0}
    with tempfile.TemporaryDirectory() as folder:
        results = tune.Tuner(
            tune.with_resources(train, resources),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="accuracy",
                mode="max",
                num_samples=config["trials"],
                search_alg=ConcurrencyLimiter(
                    OptunaSearch(seed=0, points_to_evaluate=config["points"]), max_concurrent=2
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                callbacks=[MLflowLoggerCallback(f"sqlite:///{folder}/mlflow.db", experiment_name="plain")],
            ),
        ).fit()
        failed = results.errors
        if failed:
            raise SystemExit(f"{len(failed)} trials of the plain recipe failed: {failed[0]}")
        found = sorted(
            (results[i].metrics or {} for i in range(len(results))), key=lambda metrics: metrics["config"]["seed"]
        )
    ray.shutdown()
    return {
        "wall_s": time.perf_counter() - started,
        "accuracy": [metrics["accuracy"] for metrics in found],
        "train_s": [metrics["train_s"] for metrics in found],
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("RAY_worker_niceness", "0")
    print(json.dumps(search(json.loads(sys.argv[1]))))

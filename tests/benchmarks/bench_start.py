"""What a person waits for before a command does anything: import, help, completion, the first answer of `predict`.

    python tests/benchmarks/bench_start.py [--task movie-reviews] [--times 5] [--json FILE]

Each command is a process of its own, run `--times` times after one that fills the disk's cache. The shortest counts:
whatever else the machine does makes a start longer, and nothing makes it shorter. `predict` needs a champion of the
task in LORAXS_HOME. Beside it stands what transformers alone takes for an answer of the same base without an adapter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import script

import loraxs_search
from loraxs_search.base_model.locate import locate
from loraxs_search.manifest import verify

CLI = (sys.executable, "-m", "loraxs_search")
TEXT = "a moving film"
PLAIN = """
import sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
print(model(**tokenizer([sys.argv[2]], return_tensors="pt")).logits)
"""


def shortest(command: Sequence[str], times: int, **env: str) -> float:
    """Return the seconds that a command takes, the shortest of several after one."""
    seconds = []
    for _ in range(times + 1):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, **env})
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def measure(task: str, times: int) -> Mapping[str, float]:
    """Return the seconds of each start."""
    base = locate(verify(loraxs_search.pull(task)).base_model)
    completion = {"_LORAXS_SEARCH_COMPLETE": "complete_bash", "COMP_WORDS": "loraxs-search predict ", "COMP_CWORD": "2"}
    return {
        "python": shortest([sys.executable, "-c", ""], times),
        "import loraxs_search": shortest([sys.executable, "-c", "import loraxs_search"], times),
        "--help": shortest([*CLI, "--help"], times),
        "completion of a task": shortest(["loraxs-search"], times, **completion),
        "import torch": shortest([sys.executable, "-c", "import torch"], times),
        "transformers alone, an answer": shortest([sys.executable, "-c", PLAIN, str(base.path), TEXT], times),
        "predict, an answer": shortest([*CLI, "predict", task, TEXT], times),
    }


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--task", default="movie-reviews")
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    seconds = measure(arguments.task, arguments.times)
    print("| | seconds |\n|---|--:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.2f} |")
    script.keep_numbers(arguments, seconds)


if __name__ == "__main__":
    main()

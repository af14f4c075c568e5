"""Does a larger adapter teach a small one? The same student without a teacher, and with one that answers more rows.

    python tests/benchmarks/bench_teachers.py --data FOLDER [--json FILE]

FOLDER is `movie_reviews`. Of its train rows, 100, 500 and 3,000 have labels, 4,000 others none; the test rows and 1,000
further train rows are the test. A teacher is a rank 16 adapter of the last three layers of `--teacher`, trained on the
labelled rows. Its answers to the rows without labels teach students on MiniLM, the recipe of `bench_choices.py` with
heads that start at a probe; those without a teacher train as many steps on the labelled rows. `from 3000` is the
teacher of 3,000 labels, as an outside system would teach. Seeds differ in the student; the teacher and the rows are the
same. Differences are paired by seed, with the interval of Student's t. A second run with the same `--json` trains only
what it lacks. `--quick` shows that it runs, with MiniLM as its own teacher.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import script
from bench_choices import MINILM, RECIPE, measure, show
from optuna.trial import FixedTrial

from loraxs_search.packing import capacity
from loraxs_search.packing.host import LoadedBase
from loraxs_search.packing.pack import Pack, PackedModel
from loraxs_search.records.trial import TrialSpec
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space
from loraxs_search.tasks.kinds import ForwardRequest

TEACHER = {**RECIPE, "head_init": "random", "target_modules": "all-linear@last-3", "learning_rate": 4.0e-3}
Row = dict[str, Any]


def make_space(
    files: dict[str, list[Row]], folder: Path, name: str, base: str, params: dict[str, Any], steps: int
) -> Space:
    paths = {split: folder / f"{name}-{split}.jsonl" for split in files}
    for split, path in paths.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in files[split]))
    section: dict[str, Any] = {"use": "sst2", "name": name, "max_length": 64}
    section["data"] = {"data_files": {split: str(path) for split, path in paths.items()}}
    if any("taught" in row for row in files["train"]):
        section["teacher"] = {"columns": ["taught.negative", "taught.positive"]}
    search = {"max_steps": steps, "report_every": steps}
    text = f"task: {json.dumps(section)}\n{base}\nparameters: {json.dumps(params)}\nsearch: {json.dumps(search)}\n"
    return parse_space(text, source=f"{name}.yaml", folder=folder)


def answers(space: Space, steps: int, unlabelled: int) -> npt.NDArray[np.float32]:
    """Train a teacher, and return the probabilities that it gives its validation rows, (n, 2).

    Args:
        unlabelled: How many of these rows, the last ones, are without a label.
    """
    loaded = LoadedBase(space.base_model, space.task)
    budget = capacity.token_budget(loaded.modules, loaded.dtype, loaded.device)
    pack = Pack(PackedModel(loaded.model, loaded.factors, loaded.modules), max_tokens=budget)
    data, params = loaded.prepared(), space.suggest(FixedTrial({}))
    slot = pack.join(TrialSpec("teacher", params, space.hyperparameters(params, loaded.modules, 0)), data)
    for _ in range(steps):
        for error in pack.step([slot]).values():
            raise error
    rows = np.arange(data.num_rows("validation"))
    request = ForwardRequest("validation", rows, lambda outputs, _: (outputs.read.float().softmax(-1),))
    (shares,) = pack.answer([slot], {slot.name: request})[slot.name]
    found: npt.NDArray[np.float32] = shares.numpy()
    right = (found.argmax(-1) == data.labels("validation"))[-unlabelled:].mean()
    print(f"{space.task.name}: {right:.3f} of the rows without labels right", flush=True)
    return found


def taught(rows: Sequence[Row], shares: npt.NDArray[np.float32]) -> list[Row]:
    return [
        {**row, "taught": {"negative": no, "positive": yes}}
        for row, (no, yes) in zip(rows, shares.tolist(), strict=True)
    ]


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", default="sentence-transformers/all-mpnet-base-v2")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 3000])
    parser.add_argument("--unlabelled", type=int, default=4000)
    parser.add_argument("--teacher-steps", type=int, default=120)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    teacher = f"base_model: {json.dumps({'id': given.teacher})}"
    if given.quick:
        given.sizes, given.unlabelled, given.teacher_steps, given.steps, given.seeds = [20, 40], 60, 4, 4, 2
        teacher = MINILM
    rows = {
        split: [
            json.loads(line) for line in gzip.decompress((given.data / f"{split}.jsonl.gz").read_bytes()).splitlines()
        ]
        for split in ("train", "validation", "test")
    }
    train, most = rows["train"], max(given.sizes)
    random.Random(0).shuffle(train)
    unlabelled, rest = train[most : most + given.unlabelled], train[most + given.unlabelled :]
    files = {"validation": rows["validation"][:200], "test": [*rows["test"], *rest[:1000]]}
    known: dict[str, Any] = json.loads(given.json.read_text()) if given.json and given.json.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        answered = {}
        for size in given.sizes:
            if f"teacher {size}" not in known:
                own = {"train": train[:size], "validation": [*train[:most], *unlabelled], "test": files["test"][:20]}
                space = make_space(own, Path(folder), f"teacher-{size}", teacher, TEACHER, given.teacher_steps)
                known[f"teacher {size}"] = answers(space, given.teacher_steps, len(unlabelled)).tolist()
                script.keep_numbers(given, known)
            answered[size] = np.array(known[f"teacher {size}"], np.float32)
        arms: dict[str, Space] = {}
        for size in given.sizes:
            for source in dict.fromkeys([None, size, most]):
                arm = f"{size} labels, {'no teacher' if source is None else f'from {source}'}"
                shown = train[:size]
                if source:
                    shares = answered[source]
                    nameless = [{"sentence": row["sentence"]} for row in unlabelled]
                    shown = [*shown, *taught(nameless, shares[most:])]
                name = f"student-{size}-{source or 0}"
                own_files = {**files, "train": shown}
                arms[arm] = make_space(own_files, Path(folder), name, MINILM, RECIPE, given.steps)
        for arm, space in arms.items():
            if missing := range(len(known.get(arm, ())), given.seeds):
                scores = measure({arm: space}, missing, {given.steps: ["test"]})[arm][str(given.steps)]
                known[arm] = [*known.get(arm, ()), *scores]
                script.keep_numbers(given, known)
    for size in given.sizes:
        show(
            "film reviews",
            "accuracy",
            {arm: {str(given.steps): known[arm]} for arm in arms if arm.startswith(f"{size} ")},
        )


if __name__ == "__main__":
    main()

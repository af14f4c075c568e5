"""Questions with labels of one's own: a trained adapter beside a language model that has seen no example.

    apt-get install wordnet-base fortunes
    python tests/benchmarks/bench_decisions.py [--sets films wordnet fortunes] [--ways adapter] [--json FILE]

Three sets. `films`: the shipped film reviews, two labels. `wordnet`: definitions of nouns in WordNet 3.0 (Debian's
wordnet-base 1:3.0-39, WordNet licence), labelled by the file that its editors keep each in: 24 kinds of thing, without
the two smallest files. `fortunes`: sayings of at most 400 characters (Debian's fortunes 1:1.99.1-9, BSD licence), by
the file that each is in: the 15 files that are named after a subject. Equal texts are one row, rows are drawn and
divided with a fixed seed, and `--root` is where the packages were unpacked, if they are not installed.

- *zero-shot*: SmolLM2-135M. The text stands in a plain prompt, `Review: TEXT`, and in the next line `Sentiment:`. A
  label's probability is the softmax over all labels of its mean log-likelihood a token. *Prior removed* subtracts first
  what the label has behind the text `N/A`.
- *adapter*: the shipped recipe on MiniLM, a search of one trial of 480 steps, the same for all sets; its command is
  printed. A study that is there already is not searched again.
- *TF-IDF*: words and pairs of words, logistic regression, its penalty chosen on validation rows.

ECE is the expected calibration error in 15 bins with equally many test rows. Milliseconds are the median of `--timed`
questions that are asked one at a time, without HTTP.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import script
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

import loraxs_search
from loraxs_search import AdapterBank, Prediction
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.engine.passes import PassExecutor, ask, workers_for
from loraxs_search.home import home, write_atomic
from loraxs_search.records.codec import Split
from loraxs_search.records.task import DataSource, Task
from loraxs_search.search_space.load import load_space
from loraxs_search.studies.folder import StudyFolder
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds.multiple_choice import MultipleChoice
from loraxs_search.tasks.prepared import load_data
from loraxs_search.tasks.rows import SourceLocation

BINS, BATCH, LONGEST = 15, 200, 400
SEARCH = {
    **{"task.max_length": 128, "task.metrics": ["accuracy"], "promotion.candidates": 1, "promotion.max_bytes": None},
    **{"search.trials": 1, "search.max_steps": 480, "search.report_every": 240},
}
# The lexicographers' files of nouns, from number 3 on; empty for those that are left out.
NOUNS = (
    *("", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food"),
    *("group", "location", "", "object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
    *("relation", "shape", "state", "substance", "time"),
)
SUBJECTS = {
    **{name: name for name in ("art", "computers", "drugs", "education", "food", "kids", "law", "love", "medicine")},
    **{"men-women": "men and women", "politics": "politics", "science": "science", "sports": "sports"},
    **{"startrek": "Star Trek", "work": "work"},
}
Row = tuple[str, str]  # text, label


@dataclass
class Labelled:
    """Rows of one set.

    Args:
        noun: What the prompt calls a text.
        asked: What it is to say of it.
    """

    name: str
    noun: str
    asked: str
    labels: list[str]
    rows: dict[Split, list[Row]]


# ---- sets ------------------------------------------------------------------------------------------------------------
def films(_: Path) -> Labelled:
    task = load_space("movie_reviews").task
    rows: dict[Split, list[Row]] = {
        split: [(text, task.labels[label]) for text, label in zip(own.texts, own.labels.tolist(), strict=True)]
        for split, own in load_data(task).items()
    }
    return Labelled("films", "Review", "Sentiment", list(task.labels), rows)


def wordnet(root: Path) -> Labelled:
    def rows() -> Iterator[Row]:
        for line in (root / "usr/share/wordnet/data.noun").read_text().splitlines():
            if not line.startswith(" ") and (label := NOUNS[int(line.split()[1]) - 3]):
                yield line.partition(" | ")[2].partition('; "')[0].strip(), label

    return divided("wordnet", "Definition", "Kind of thing", rows(), {"validation": 1000, "test": 2000}, 8000)


def fortunes(root: Path) -> Labelled:
    def rows() -> Iterator[Row]:
        for file, label in SUBJECTS.items():
            content = (root / "usr/share/games/fortunes" / file).read_text(errors="replace")
            for part in re.split(r"^%$", content, flags=re.MULTILINE):
                if 0 < len(text := " ".join(part.split())) <= LONGEST:
                    yield text, label

    return divided("fortunes", "Saying", "Subject", rows(), {"validation": 500, "test": 1500})


def divided(
    name: str, noun: str, asked: str, rows: Iterator[Row], held_out: dict[Split, int], most: int | None = None
) -> Labelled:
    """Return rows drawn at random, of equal texts the first, with the first ones held out."""
    found = list({text: (text, label) for text, label in reversed(list(rows))}.values())
    random.Random(0).shuffle(found)
    parts, start = dict[Split, list[Row]](), 0
    for split, size in held_out.items():
        parts[split], start = found[start : start + size], start + size
    parts["train"] = found[start:most]
    return Labelled(name, noun, asked, sorted({label for _, label in found}), parts)


def write_rows(own: Labelled) -> dict[str, Any]:
    """Write the rows of a set as files, and return the keys of a task of them."""
    folder = home() / "benchmarks" / own.name
    for split, rows in own.rows.items():
        lines = (json.dumps({"text": text, "label": label}) for text, label in rows)
        write_atomic(folder / f"{split}.jsonl", "".join(f"{line}\n" for line in lines))
    files = {split: str(folder / f"{split}.jsonl") for split in own.rows}
    columns = {"text": "text", "label": "label"}
    return {"data": {"data_files": files}, "columns": columns, "labels": own.labels}


SETS = {"films": films, "wordnet": wordnet, "fortunes": fortunes}


# ---- models: each is a function from texts to answers ----------------------------------------------------------------
Answering = Callable[[Sequence[str]], list[Prediction]]


def best_of(texts: Sequence[str], shares: npt.NDArray[np.float64], labels: Sequence[str]) -> list[Prediction]:
    """Return the likeliest label of each text, given the shares of all, (texts, labels)."""
    found = zip(texts, shares.argmax(1).tolist(), shares.max(1).tolist(), strict=True)
    return [Prediction(text, labels[label], share) for text, label, share in found]


def zero_shot(own: Labelled, *, removes_prior: bool) -> tuple[Answering, str]:
    """Return the language model, and its size."""
    base = locate(load_space("movie_reviews_text").base_model)
    prompt, options = f"{own.noun}: {{text}}\n{own.asked}:", [f" {label}" for label in own.labels]
    chosen = Task(
        *(own.name, "multiple-choice", DataSource(), "", "", "accuracy"),
        direction="maximize",
        metrics=("accuracy",),
        max_length=512,
        settings={"prompt": prompt, "options": options, "label": "", "normalize": "tokens"},
    )
    kind = MultipleChoice(chosen)
    model, source = load_model(base, kind.model).eval(), RowSource(load_tokenizer(base))
    executor = PassExecutor(*workers_for(model.device))

    def scores(texts: Sequence[str]) -> npt.NDArray[np.float64]:  # (texts, labels)
        place = SourceLocation("the benchmark", None, range(len(texts)))
        encoded = kind.encode_questions([(text,) for text in texts], source.tokenizer, place)
        return np.stack(ask(model, source, kind._option_scores(encoded), executor if len(texts) > 1 else None)[1])

    prior = scores(["N/A"]) if removes_prior else np.zeros(1)

    def answer(texts: Sequence[str]) -> list[Prediction]:
        return best_of(texts, softmax(scores(texts) - prior, axis=1), own.labels)

    return answer, f"{model.num_parameters() / 1e6:.0f} million numbers"


def adapter(own: Labelled) -> tuple[Answering, str]:
    """Return the finalist of a search, and its size."""
    name, rows = f"decisions-{own.name}", write_rows(own)
    overrides: dict[str, Any] = {
        "task.name": name,
        "task.data.data_files": rows["data"]["data_files"],
        "task.columns": rows["columns"],
        "task.labels": rows["labels"],
        **SEARCH,
    }
    if StudyFolder.exists(name):
        result = loraxs_search.resume(name)
    else:
        settings = " ".join(f"--set '{key}={json.dumps(value)}'" for key, value in overrides.items())
        print(f"loraxs-search launch movie_reviews --name {name} {settings}", flush=True)
        result = loraxs_search.launch("movie_reviews", name=name, overrides=overrides)
    finalist = next(it for it in result.candidates if it.test_metrics)
    bank = AdapterBank.of(trial := f"{name}/{finalist.trial_id}")
    numbers = sum(it.numel() for it in bank.model.model.parameters()) / 1e6
    return lambda texts: bank.predict(trial, texts), f"{finalist.stored_bytes:,} bytes, base {numbers:.0f} million"


def tfidf(own: Labelled) -> tuple[Answering, str]:
    """Return the best of three linear models of word counts."""

    def fitted(weight: float) -> Pipeline:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        return make_pipeline(words, LogisticRegression(C=weight, tol=1e-3, max_iter=200)).fit(
            *zip(*own.rows["train"], strict=True)
        )

    held_out = list(zip(*own.rows["validation"], strict=True))
    model = max((fitted(weight) for weight in (1.0, 10.0, 100.0)), key=lambda it: it.score(*held_out))

    size = f"{model[-1].coef_.nbytes / 1e6:.1f} MB"
    return lambda texts: best_of(texts, model.predict_proba(texts), model.classes_), size


WAYS = {
    "adapter": partial(adapter),
    "TF-IDF": partial(tfidf),
    "zero-shot": partial(zero_shot, removes_prior=False),
    "zero-shot, prior removed": partial(zero_shot, removes_prior=True),
}


# ---- numbers ---------------------------------------------------------------------------------------------------------
def measure(answer: Answering, rows: Sequence[Row], timed: int) -> dict[str, float]:
    """Return accuracy, expected calibration error, and milliseconds of a question."""
    texts, found = [text for text, _ in rows], list[Prediction]()
    for start in range(0, len(texts), BATCH):
        found += answer(texts[start : start + BATCH])
    right = np.array([one.label == label for one, (_, label) in zip(found, rows, strict=True)], float)
    sure = np.array([one.score for one in found], float)
    bins = np.array_split(np.argsort(sure, kind="stable"), BINS)
    error = sum(abs(right[own].sum() - sure[own].sum()) for own in bins) / len(rows)
    seconds = []
    for text in texts[:timed]:
        started = time.perf_counter()
        answer([text])
        seconds.append(time.perf_counter() - started)
    return {"accuracy": right.mean(), "ece": float(error), "ms": 1e3 * statistics.median(seconds), "rows": len(rows)}


def main() -> None:
    parser = script.parser(__doc__)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--rows", type=int, default=2000, help="test rows, at most")
    parser.add_argument("--timed", type=int, default=100, help="questions that are asked one at a time")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the Debian packages were unpacked")
    options, numbers = parser.parse_args(), list[dict[str, Any]]()
    print("| | | accuracy | ECE | ms a question | size | trained on |\n|---|---|--:|--:|--:|---|---|")
    for name in options.sets:
        own = SETS[name](options.root)
        test, trained = own.rows["test"][: options.rows], f"{len(own.rows['train']):,} rows of it"
        for way in options.ways:
            make = WAYS[way]
            answer, size = make(own)
            rows = "none of it" if make.keywords else trained
            found = measure(answer, test, options.timed)
            numbers.append({"set": name, "labels": len(own.labels), "way": way, "size": size, "trained": rows, **found})
            print(
                f"| {name}, {len(own.labels)} labels | {way} | {found['accuracy']:.3f} | {found['ece']:.3f} |"
                f" {found['ms']:.0f} | {size} | {rows} |",
                flush=True,
            )
            script.keep_numbers(options, numbers)


if __name__ == "__main__":
    main()

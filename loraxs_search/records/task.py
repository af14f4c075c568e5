"""The base and the task: what a study is asked to learn, and on what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from loraxs_search.records.codec import SECTION, Count, Direction, Law, Pooling, Scalar, Split, Text, matching

_SHOWN = 16  # hexadecimal digits of a digest


@dataclass(frozen=True)
class BaseModelRef:
    """The frozen model. `base_model: ID` is short for `base_model: {id: ID}`."""

    __pydantic_config__ = SECTION

    id: Text
    """Id on the Hugging Face hub, or a folder. A path that starts with `.`, `~` or `/` is relative to the space's file.
    """
    revision: Text | None = None
    """Commit, tag or branch on the hub."""
    package: Text | None = None
    """Installed Python package that carries the model, as safetensors or GGUF. `sentence-transformers/all-MiniLM-L6-v2`
    is found in its package without this key.
    """
    sha256: Annotated[Text, matching("[0-9a-f]{64}", "must be 64 hexadecimal digits in lower case")] | None = None
    """Digest of the weights, 64 hexadecimal digits. Other weights are refused."""


@dataclass(frozen=True)
class BaseSetup:
    """How a base is set up, beside its weights: nothing of it shows in their digest.

    Args:
        tokenizer: Digest of what the tokenizer does, its chat template included; empty where there is none.
        config: What the configuration says of the numbers; a field of a field has both names, with a point between.
    """

    tokenizer: str
    config: Mapping[str, str | float | bool | None]

    def difference(self, actual: BaseSetup) -> str:
        """Describe where another base differs, with both values; empty where it does not.

        Fields that one of them lacks are not compared: versions of transformers add some.
        """
        unlike = [
            f"`{name}` {json.dumps(actual.config[name])}, not {json.dumps(value)}"
            for name, value in self.config.items()
            if name in actual.config and actual.config[name] != value
        ]
        if "" not in (self.tokenizer, actual.tokenizer) and self.tokenizer != actual.tokenizer:
            unlike.append(f"tokenizer {actual.tokenizer[:16]}, not {self.tokenizer[:16]}")
        return " and ".join(unlike)


@dataclass(frozen=True)
class BaseModel:
    """A base model that was found on this machine.

    Args:
        id: Hub id or folder, as named.
        path: Folder with config, weights and tokenizer on this machine.
        weight_digest: sha256 of the weight file; of the sorted list of digests when sharded.
        revision: Hub commit, when it came from the hub.
        setup: None if tokenizer and configuration were not looked at.
    """

    id: str
    path: str
    weight_digest: str
    revision: str | None = None
    setup: BaseSetup | None = field(default=None, hash=False)


@dataclass(frozen=True)
class LinearModule:
    """A linear layer that an adapter can attach to; `name` is the full module path in the task model."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Identity:
    """Base and data by content, as a study began with them: a path, a name or a version identifies nothing.

    Args:
        base_digest: Of the base's weights.
        data_fingerprint: Of the texts and labels of all splits.
        setup: The base's; None if tokenizer and configuration were not looked at.
    """

    base_digest: str
    data_fingerprint: str
    setup: BaseSetup | None = None

    def difference(self, actual: Identity) -> str:
        """Describe where base or data differ from these, with both values; empty where they agree."""
        values = {
            "weight digest": (self.base_digest, actual.base_digest),
            "data fingerprint": (self.data_fingerprint, actual.data_fingerprint),
        }
        differs = [f"{name} {now[:_SHOWN]}, not {was[:_SHOWN]}" for name, (was, now) in values.items() if now != was]
        if self.setup and actual.setup and (unlike := self.setup.difference(actual.setup)):
            differs.append(f"another base: {unlike}")
        return " and ".join(differs)


def _named(value: object) -> object:
    """Return the splits that are named; null stands for one that is not."""
    if isinstance(value, dict):
        return {split: name for split, name in value.items() if name is not None}
    return {} if value is None else value


SplitNames = Annotated[Mapping[Split, Text], Law(_named)]


@dataclass(frozen=True)
class SplitSource:
    """A split of another dataset of the hub."""

    __pydantic_config__ = SECTION

    hub: Text
    """Dataset on the Hugging Face hub."""
    split: Text
    """Name of the split there. `train[:500]` takes the first five hundred rows."""
    config: Text | None = None
    """Configuration of the dataset."""
    revision: Text | None = None
    """Commit, tag or branch."""
    rename: Mapping[str, Text] = field(default_factory=dict)
    """Its columns, each with the name that the task knows."""


@dataclass(frozen=True)
class DataSource:
    """Where the rows come from: files, or a dataset of the hub."""

    __pydantic_config__ = SECTION

    hub: Text | None = None
    """Dataset on the Hugging Face hub, instead of `data_files`."""
    config: Text | None = None
    """Configuration of the hub's dataset."""
    revision: Text | None = None
    """Commit, tag or branch of the hub's dataset."""
    splits: SplitNames = field(default_factory=dict)
    """The hub's name of `train`, and of `validation` and `test` if it has them. `train[:1000]` takes the first thousand
    rows. The default is `train` alone.
    """
    data_files: SplitNames = field(default_factory=dict)
    """Local files, instead of `hub`: one for `train`, and for `validation` and `test` if there are such rows; a part of
    the training rows is set aside for each that is missing. json, jsonl, csv, tsv, parquet, conll, also compressed.
    Paths start at the space.
    """
    validation: SplitSource | None = None
    """Validation rows from another dataset of the hub."""
    test: SplitSource | None = None
    """Test rows from another dataset of the hub."""
    max_characters: Count | None = None
    """Training rows with more characters, in all columns that are read, are left out."""
    carved_rows: Count | None = None
    """How many training rows are set aside for each split that is missing. The default is a tenth of them."""
    train_rows: Count | None = None
    """Most training rows to learn from. A hash of their texts decides which."""
    held_out_rows: Count | None = None
    """Most validation rows, and most test rows. A hash of their texts decides which."""

    @property
    def elsewhere(self) -> dict[Split, SplitSource]:
        """The splits that come from other datasets of the hub."""
        own: dict[Split, SplitSource | None] = {"validation": self.validation, "test": self.test}
        return {split: source for split, source in own.items() if source is not None}


MAX_NAME = 200  # characters of a registered name


@dataclass(frozen=True)
class Task:
    """What is learnt: rows, columns, labels and how an answer is scored.

    Args:
        kind: Name of the task kind, as `tasks.kinds` knows it.
        text: Column of the texts; empty where the kind names its columns in `settings`.
        label: Column of the answers; empty like `text`.
        labels: Label names in id order; empty where answers are no labels.
        metrics: Every metric reported; `metric` is the one searched for and is among them.
        max_length: Longest sequence in tokens; longer ones are truncated.
        validation_rows: At most this many validation rows are scored at each report; None means all.
        settings: The kind's own keys, as JSON knows values.
        report_metric: What running trials are compared by at each report, and its direction; None means `metric`.
            Candidates are always compared by `metric`.
        standardized: Whether a head learns numbers less their mean, in units of their spread.
        variant: Which of several championships of the task it is, such as a language or a customer; None if there is
            one alone.
        pooling: What a head reads of the last hidden states: what the base's class does, or a pool of each row.
        slices: Columns that say which groups a row is of; promotion scores the test rows of each. No adapter reads
            them, and they are no part of the rows' fingerprints.
        operating_points: Accuracies that answers are to have where the adapter is sure, from the least on.
        question: The instructions of a question that the task answers: by them, servers find it.
    """

    name: str
    kind: str
    source: DataSource
    text: str
    label: str
    metric: str
    direction: Direction
    metrics: tuple[str, ...]
    text_pair: str | None = None
    labels: tuple[str, ...] = ()
    max_length: int = 128
    validation_rows: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    report_metric: str | None = None
    report_direction: Direction | None = None
    standardized: bool = False
    variant: str | None = None
    pooling: Pooling = "class"
    slices: tuple[str, ...] = ()
    operating_points: tuple[float, ...] = (0.9, 0.95, 0.99)
    question: str | None = None

    @property
    def registered_name(self) -> str:
        """What a champion is champion of, `TASK` or `TASK.VARIANT`: the registered model, which people pull by it.

        A task whose own name has a dot is the same championship as a variant that is written so.
        """
        return f"{self.name}.{self.variant}" if self.variant else self.name

    @property
    def for_candidates(self) -> Task:
        """The task as candidates and baselines are scored: by its own metrics, on all validation rows."""
        return replace(self, validation_rows=None, report_metric=None, report_direction=None)

    @property
    def search_metric(self) -> str:
        """What running trials are compared by."""
        return self.report_metric or self.metric

    @property
    def search_direction(self) -> Direction:
        """Which way `search_metric` is better."""
        return self.report_direction or self.direction


_OF_OUTPUTS = ("id2label", "label2id", "num_labels", "problem_type")  # fields of a configuration that no body reads


@dataclass(frozen=True)
class OutputScale:
    """What the outputs of a head in training mean: an answer is `mean + spread * output`."""

    mean: float = 0.0
    spread: float = 1.0


@dataclass(frozen=True)
class TaskModel:
    """As what a task loads its base, a model of transformers.

    Args:
        auto_class: Name of the class in transformers, such as `AutoModelForSequenceClassification`.
        num_outputs: Outputs of the head that each trial trains; None if there is none, and the last hidden states
            and the base's own output embedding are read.
        config: Fields of the model's configuration that the task sets.
        pooling: What the head reads of the last hidden states.
    """

    auto_class: str
    num_outputs: int | None = None
    config: tuple[tuple[str, Scalar], ...] = ()
    pooling: Pooling = "class"

    @property
    def body(self) -> TaskModel:
        """The same model, whatever its outputs: tasks with equal ones can share a host."""
        config = tuple((name, value) for name, value in self.config if name not in _OF_OUTPUTS)
        return TaskModel(self.auto_class, None if self.num_outputs is None else 1, config, self.pooling)


@dataclass(frozen=True)
class Serving:
    """How a server that writes text asks an adapter as in training.

    Args:
        prompt: With columns in braces, `{{` for a brace; None if there are messages.
        messages: Roles and contents like `prompt`, which the tokenizer's chat template joins.
        stop: Texts that end an answer.
        temperature: 0 takes the likeliest token.
        ends: The tokens that end an answer, as the tokenizer names them; empty where that is not known.
    """

    prompt: str | None
    messages: tuple[tuple[str, str], ...] = ()
    stop: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    ends: tuple[str, ...] = ()

    @property
    def generation_options(self) -> dict[str, Any]:
        """The arguments of a `GenerationConfig` that writes as `predict` does, but for what ends an answer.

        It takes the place of the base's own, whose penalties `predict` does not know.
        """
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": bool(self.temperature)}
        if self.temperature:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return options


@dataclass(frozen=True)
class SplitOverlap:
    """How many rows of one split have a text that is in another split too; of a pair, both texts.

    Args:
        split: Whose rows are counted.
        exact: Rows whose text is there letter for letter.
        folded: Rows whose text is there up to upper and lower case and white space; the exact ones are among them.
        places: Where the first of these rows are in both splits, for display; empty if that is not known.
        source: The name of the one file or data set that both splits are of; empty where they are not.
    """

    split: Split
    other: Split
    exact: int
    folded: int
    places: str = field(default="", compare=False)
    source: str = field(default="", compare=False)


@dataclass(frozen=True)
class AnswerFact:
    """A number that is said of the answers of each split, such as how many rows have a label."""

    name: str
    values: Mapping[Split, int | float]


@dataclass(frozen=True)
class ConstantAnswer:
    """The same answer to every row: the best one for the train rows, as people read it, and its scores by split."""

    answer: str
    scores: Mapping[Split, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class DataReport:
    """What was counted when a task's rows were read, and with which error scores on them come.

    Of validation, what is said of tokens, answers and scores is of the rows that reports score.

    Args:
        num_rows: Of each whole split.
        overlaps: Of each two splits, the one with the rows that scores are taken on first.
        repeated: Rows whose text is that of an earlier row of the same split.
        blank: Rows in which a text is empty.
        cut: Rows of each split that lost tokens to `max_length`; empty where the task's kind does not count them.
        warnings: What the task's kind says of the rows.
        cut_part: What such rows lose: their beginnings, or their ends.
        tokens: `median` and `longest` of each split's rows, in tokens, before any are left out to keep `max_length`;
            prompt and answer where one is learnt.
        answers: What the task's kind says of them.
        constant: None if no metric of the task is taken of answers.
        standard_errors: Of each metric that is taken of answers, on validation and test rows: `error` of such a score,
            where half of the answers are right and half the constant one, and `reach`, how far the constant answer's
            score is from that of answers that are all right.
    """

    num_rows: Mapping[Split, int] = field(default_factory=dict)
    overlaps: tuple[SplitOverlap, ...] = ()
    repeated: Mapping[Split, int] = field(default_factory=dict)
    blank: Mapping[Split, int] = field(default_factory=dict)
    cut: Mapping[Split, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    cut_part: str = "beginnings"
    tokens: Mapping[Split, Mapping[str, int]] = field(default_factory=dict)
    answers: tuple[AnswerFact, ...] = ()
    constant: ConstantAnswer | None = None
    standard_errors: Mapping[Split, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of shared rows by name, for the record: `test_rows_in_train`, and the same `_folded`.

        And of rows that were cut, where that is counted: `train_rows_cut`.
        """
        names = ((f"{it.split}_rows_in_{it.other}", it) for it in self.overlaps)
        shared = {key: n for name, it in names for key, n in ((name, it.exact), (f"{name}_folded", it.folded))}
        return shared | {f"{split}_rows_cut": cut for split, cut in self.cut.items()}

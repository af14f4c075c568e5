"""Decisions: a state and typed questions, each answered by a task with probabilities.

Two forms of one request: OpenAI's (`/v1/decisions`) and TypeSafe's (`/v1/systemone`), whose `noul` is a `predicate`.

**Which task answers** a question, the first of these that applies: `serve --question NAME=TASK`; instructions that are
the task's `question`; a name that is a task's; the only task that may answer. `model` says which may: one task, or
`loraxs` and each `--model-alias`, all that are served and that the key may ask. Where something else is asked what they
do not know (`--fallback`), the only task of an alias answers no question that is not its own.

**How it answers.** A `choice` has the task's labels as options; of fewer, the probabilities are shared out over those
that are offered, and `x_restricted` says so. The option `true` or `false` is the label of this name. A `predicate` is
of a task of two labels with a `true_label`, or of one of several labels at once, where the instructions or else the
name are the label. A `score` is of a task with as many levels; names that the task has too must be in its order.
Descriptions are not read: what labels mean was learnt.

**What a task reads.** A JSON object whose keys are the columns of the task fills these, also as text. All else is a
text: JSON without white space, its keys sorted; a message as its parts, one a line; several messages, or one that is
not the user's, as lines `ROLE: TEXT`. A longer text is cut as in training, and `x_truncated` says so.

**Confidence** is 1 where all probability is on one of n answers and 0 where it is spread evenly: of a choice
`(max p - 1/n) / (1 - 1/n)`; of a score, with m the likeliest level, `1 - sum p_i |i - m| / mean |i - (n - 1)/2|`, at
least 0.

`x_task` names the version that has answered, `TASK:3`; `x_sure` has the operating points at which its answer is sure.
`x_fallback` marks answers of another server, and `x_reason` says why a question is refused. `usage` counts the tokens
that were computed, for each task that was asked.
"""

from __future__ import annotations

import contextlib
import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field

from loraxs_search.errors import LoraxsError, UsageError, both, one_of, shortened
from loraxs_search.records.adapter import Prediction
from loraxs_search.serve.bodies import Answered, Json, Limits, answering_job
from loraxs_search.serve.engine import Job
from loraxs_search.serve.served_models import RefusedError, ServedAdapter
from loraxs_search.tasks.kinds import TaskKind
from loraxs_search.tasks.rows import SourceLocation, composed

log = logging.getLogger(__name__)

EVERY_TASK = "loraxs"
_MOST_CHOICES, _MOST_LEVELS, _MOST_QUESTIONS = 255, 10, 400


@dataclass(frozen=True)
class Question:
    """A question, whichever form it came in.

    Args:
        key: Its place in the request: a number, or its name.
        options: Of a choice, as they are named in the request.
        levels: Of a score, the lowest first.
    """

    key: int | str
    name: str | None
    type: Literal["predicate", "choice", "score"]
    instructions: str
    options: tuple[str | bool, ...] = ()
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """A question's answer.

    Args:
        shares: Probability of each option or level; of a predicate, that it is true.
        extra: Further fields, which begin with `x_`.
    """

    question: Question
    shares: Sequence[float]
    extra: Json = field(default_factory=dict)

    @property
    def likeliest(self) -> int:
        """The option or level with the largest probability, the first of several."""
        return max(range(len(self.shares)), key=self.shares.__getitem__)

    @property
    def score(self) -> float:
        """The mean level, from 0."""
        return sum(level * share for level, share in enumerate(self.shares))

    @property
    def confidence(self) -> float:
        """How far from even the probabilities are, 0 to 1; the module says the formulas."""
        count = len(self.shares)
        if count == 1:
            return 1.0
        if self.question.type == "choice":
            return max(0.0, (max(self.shares) - 1 / count) / (1 - 1 / count))
        spread = sum(share * abs(level - self.likeliest) for level, share in enumerate(self.shares))
        even = sum(abs(level - (count - 1) / 2) for level in range(count)) / count
        return max(0.0, 1 - spread / even)


# ---- bodies ----------------------------------------------------------------------------------------------------------
def canonical(value: Any) -> str:
    """Return a text as it is, and other JSON in the one form in which equal values are equal.

    Raises:
        RefusedError: it is nested too deeply.
    """
    try:
        dumped = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise RefusedError(400, "JSON must not be nested so deeply.", "input") from None
    return value if isinstance(value, str) else dumped


_Content = str | dict[str, Any] | list[Any]
_Name = Annotated[str, Field(min_length=1)]


class DecisionBody(BaseModel, strict=True):
    """A request of either form."""

    path: ClassVar[str]
    has_refusals: ClassVar[bool]  # a question can be refused while others are answered

    model: Annotated[str, Field(description="`loraxs`, a --model-alias, or a task as elsewhere", max_length=400)]

    @abstractmethod
    def asked(self) -> list[Question]:
        """Return the questions, in order.

        Raises:
            RefusedError: instructions have an image.
        """

    @abstractmethod
    def source(self) -> Any:
        """Return what they are asked of: a text, or other JSON.

        Raises:
            RefusedError: it has an image, a call of a tool, or nothing that is known.
        """

    @abstractmethod
    def only(self, keys: Sequence[int | str]) -> Json:
        """Return the request with only these questions, as it is forwarded to another server."""

    @abstractmethod
    def parted(self, answer: Json, keys: Sequence[int | str]) -> tuple[dict[int | str, Json], int, int]:
        """Return the answers, by key, and the tokens read and written that another server's answer has.

        Raises:
            AttributeError, LookupError, TypeError, ValueError: it is none to these questions.
        """

    @abstractmethod
    def shown(self, answers: Mapping[int | str, Json], num_read: int, num_written: int) -> Json:
        """Return the body of the answer; `answers` has them by key."""

    @abstractmethod
    def answer(self, decision: Decision) -> Json:
        """Return an answer in this form."""


class _Asked(BaseModel, extra="forbid", strict=True):
    name: str | None = None
    instructions: str | list[dict[str, Any]]


class _Predicate(_Asked):
    type: Literal["predicate"]


class _Option(BaseModel, extra="forbid", strict=True):
    value: str | bool
    description: str | None = None


class _Choice(_Asked):
    type: Literal["choice"]
    choices: Annotated[list[_Option], Field(min_length=2, max_length=_MOST_CHOICES)]


class _Level(BaseModel, extra="forbid", strict=True):
    label: str
    description: str | None = None


class _Score(_Asked):
    type: Literal["score"]
    levels: Annotated[list[_Level], Field(min_length=2, max_length=_MOST_CHOICES)]


_UNUSED = Field(description="accepted, and not used")


class DecisionsBody(DecisionBody, extra="forbid"):
    """Questions of OpenAI's `decisions.create`."""

    path = "/v1/decisions"
    has_refusals = True
    input: Annotated[str | list[dict[str, Any]], Field(description="a text, or messages of text and JSON parts")]
    questions: Annotated[
        list[Annotated[_Predicate | _Choice | _Score, Field(discriminator="type")]],
        Field(min_length=1, max_length=_MOST_QUESTIONS),
    ]
    prompt_cache_key: Annotated[str | None, _UNUSED] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, _UNUSED] = None
    safety_identifier: Annotated[str | None, _UNUSED] = None
    user: Annotated[str | None, _UNUSED] = None

    def asked(self) -> list[Question]:
        questions = list[Question]()
        for key, own in enumerate(self.questions):
            instructions = own.instructions if isinstance(own.instructions, str) else _joined(own.instructions)
            options = tuple(option.value for option in own.choices) if isinstance(own, _Choice) else ()
            levels = tuple(level.label for level in own.levels) if isinstance(own, _Score) else ()
            if len({(type(value), value) for value in options}) < len(options):
                raise RefusedError(400, "`choices` must differ from each other.", f"questions.{key}.choices")
            questions.append(Question(key, own.name, own.type, canonical(instructions), options, levels))
        return questions

    def source(self) -> Any:
        if isinstance(self.input, str):
            return self.input
        said = list[tuple[str, Any]]()
        for number, item in enumerate(self.input):
            if item.get("type", "message") != "message" or item.get("role") not in _ROLES:
                got = item.get("role") if item.get("type", "message") == "message" else item.get("type")
                law = f"`input` must be messages of {one_of(_ROLES)}: calls of tools are not read, but got"
                raise RefusedError(400, f"{law} {shortened(got)}.", f"input.{number}")
            content = item.get("content")
            said.append((item["role"], content if isinstance(content, str) else _joined(content)))
        if not said:
            raise RefusedError(400, "`input` must have a message.", "input")
        if len(said) == 1 and said[0][0] == "user":
            return said[0][1]
        return "\n".join(f"{role}: {canonical(content)}" for role, content in said)

    def only(self, keys: Sequence[int | str]) -> Json:
        questions = [own.model_dump(exclude_unset=True) for key, own in enumerate(self.questions) if key in keys]
        return {"model": self.model, "input": self.input, "questions": questions}

    def parted(self, answer: Json, keys: Sequence[int | str]) -> tuple[dict[int | str, Json], int, int]:
        read = zip(keys, [self.questions[int(key)] for key in keys], answer["answers"], strict=True)
        found = {key: _answer_to(own.type, it, own.name) for key, own, it in read}
        return found, int(answer["usage"]["input_tokens"]), int(answer["usage"]["output_tokens"])

    def shown(self, answers: Mapping[int | str, Json], num_read: int, num_written: int) -> Json:
        ordered = [{"name": own.name, **answers[key]} for key, own in enumerate(self.questions)]
        usage: Json = {"input_tokens": num_read, "output_tokens": num_written, "total_tokens": num_read + num_written}
        usage["input_tokens_details"] = {"cached_tokens": 0, "cache_write_tokens": 0}
        usage["output_tokens_details"] = {"reasoning_tokens": 0}
        return {"model": self.model, "answers": ordered, "usage": usage}

    def answer(self, decision: Decision) -> Json:
        asked, shares = decision.question, decision.shares
        if asked.type == "predicate":
            return {"type": "predicate", "probability": shares[0], **decision.extra}
        if asked.type == "choice":
            each = [{"value": value, "probability": share} for value, share in zip(asked.options, shares, strict=True)]
            own: Json = {"choice": asked.options[decision.likeliest]}
        else:
            levels = enumerate(zip(asked.levels, shares, strict=True))
            each = [{"label": label, "value": value, "probability": share} for value, (label, share) in levels]
            own = {"score": decision.score}
        head = {"type": asked.type, **own, "confidence": decision.confidence}
        return {**head, "probabilities": each, **decision.extra}


def _answer_to(kind: str, answer: Any, name: str | None = None) -> Json:
    """Return another server's answer to a question of a type, if it is one, or a refusal.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: it is neither, or has another question's name.
    """
    found, value = dict(answer), answer.get("probability" if kind == "predicate" else kind)
    is_answer = found["type"] == "refusal" or (found["type"] == kind and value is not None)
    if not is_answer or found.get("name") not in (None, name):
        raise ValueError
    return found


_ROLES = ("user", "system", "developer", "assistant")


def _joined(parts: Any) -> Any:
    """Return the content of parts: the data of one JSON part as they are, else a text with a line for each."""
    found = list[Any]()
    for part in parts if isinstance(parts, list) else [parts]:
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind in ("input_text", "output_text") else None
        data = part.get("data") if kind == "input_json" else None
        if not isinstance(text, str) and not isinstance(data, dict | list):
            law = "A part must be an `input_text` with `text`, or an `input_json` with `data`: images are not read"
            raise RefusedError(400, f"{law}, but got {shortened(kind)}.", "input")
        found.append(data if text is None else text)
    if not found:
        raise RefusedError(400, "Content must have a part, but has none.", "input")
    return found[0] if len(found) == 1 else "\n".join(map(canonical, found))


class _Noul(BaseModel, strict=True):
    type: Literal["noul"]
    instructions: _Content | None = None
    criteria: dict[Literal["true", "false"], _Content | None] | None = None


class _Named(BaseModel, strict=True):
    type: Literal["choice"]
    instructions: _Content | None = None
    criteria: Annotated[dict[str, _Content | None], Field(min_length=1, max_length=_MOST_CHOICES)]


class _Rubric(BaseModel, strict=True):
    type: Literal["score"]
    instructions: _Content | None = None
    criteria: Annotated[list[_Content], Field(min_length=1, max_length=_MOST_LEVELS)]


class SystemOneBody(DecisionBody):
    """Questions of TypeSafe's System One; fields that are not known are ignored."""

    path = "/v1/systemone"
    has_refusals = False
    state: _Content
    questions: Annotated[
        dict[_Name, Annotated[_Noul | _Named | _Rubric, Field(discriminator="type")]], Field(min_length=1)
    ]
    assets: Annotated[Any, Field(description="refused: images are not read")] = None

    def asked(self) -> list[Question]:
        questions = list[Question]()
        for name, own in self.questions.items():
            instructions = "" if own.instructions is None else canonical(own.instructions)
            options = tuple(own.criteria) if isinstance(own, _Named) else ()
            levels = tuple(map(canonical, own.criteria)) if isinstance(own, _Rubric) else ()
            kind = "predicate" if isinstance(own, _Noul) else own.type
            questions.append(Question(name, name, kind, instructions, options, levels))
        return questions

    def source(self) -> Any:
        if self.assets is not None:
            raise RefusedError(400, "`assets` must be left out: images are not read.", "assets")
        return self.state

    def only(self, keys: Sequence[int | str]) -> Json:
        questions = {key: self.questions[str(key)].model_dump(exclude_unset=True) for key in keys}
        return {"model": self.model, "state": self.state, "questions": questions}

    def parted(self, answer: Json, keys: Sequence[int | str]) -> tuple[dict[int | str, Json], int, int]:
        found = {key: _answer_to(self.questions[str(key)].type, answer["answers"][key]) for key in keys}
        usage = answer["usage"]  # whose numbers a server may leave out
        return found, int(usage.get("input_tokens") or 0), int(usage.get("output_tokens") or 0)

    def shown(self, answers: Mapping[int | str, Json], num_read: int, num_written: int) -> Json:
        usage = {"input_tokens": num_read, "output_tokens": num_written}
        return {"model": self.model, "answers": {name: answers[name] for name in self.questions}, "usage": usage}

    def answer(self, decision: Decision) -> Json:
        asked, shares = decision.question, decision.shares
        if asked.type == "predicate":
            return {"type": "noul", "noul": shares[0], **decision.extra}
        if asked.type == "choice":
            names: tuple[Any, ...] = asked.options
            own: Json = {"choice": asked.options[decision.likeliest]}
        else:
            names = tuple(map(str, range(len(asked.levels))))
            own = {"score": decision.score, "legend": dict(zip(names, asked.levels, strict=True))}
        each = dict(zip(names, shares, strict=True))
        return {"type": asked.type, **own, "probabilities": each, "confidence": decision.confidence, **decision.extra}


class DetailBody(BaseModel, extra="forbid"):
    """The answer to a request of System One that is refused, or that the server fails at."""

    detail: Annotated[
        dict[Literal["error_type", "message"], str] | list[dict[Literal["loc", "msg", "type"], Any]],
        Field(description="what is wrong; of a body, the place of each fault, such as [body, questions, NAME]"),
    ]


# ---- which task answers, and how -------------------------------------------------------------------------------------
Shares = Callable[[Prediction], list[float]]


@dataclass(frozen=True)
class Routing:
    """How questions find tasks, beside the tasks' own `question`.

    Args:
        names: Task of each question's name.
        aliases: Names of `model` that mean all tasks, beside `loraxs`.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    def means_all(self, model: str) -> bool:
        return model == EVERY_TASK or model in self.aliases

    def check(self, served: Mapping[str, ServedAdapter]) -> None:
        """Hold it against the tasks that are served, by name, and warn of a `question` that several have.

        Raises:
            UsageError: a task is not among them, or an alias is.
        """
        for question, names in by_question(served).items():
            if len(names) > 1:
                log.warning("%s have one question, so a request must name one of them: %s", both(names), question)
        for name, task in self.names.items():
            if task not in served:
                law = f"`--question` must name a task that is served (one of: {one_of(served, task)})"
                raise UsageError(f"{law}, but got {name}={task}.")
        if taken := [name for name in served if self.means_all(name)]:
            raise UsageError(
                f"`--model-alias` must not be the name of a task, but {taken[0]} is.",
                hint=f"`{EVERY_TASK}` always means all tasks",
            )

    def find(
        self,
        question: Question,
        tasks: Mapping[str, ServedAdapter],
        names: Mapping[str, Sequence[str]],
        *,
        may_be_other: bool,
    ) -> ServedAdapter:
        """Return the task that answers a question.

        Args:
            tasks: Those that may answer, by name.
            names: Of those, by their `question`.
            may_be_other: Whether a question may be meant for none of them, though there is only one.
        Raises:
            RefusedError: there is none, or its instructions are the `question` of several.
        """
        named = self.names.get(question.name or "")
        if named is not None and named in tasks:
            return tasks[named]
        asked = names.get(question.instructions.strip(), ())
        if len(asked) > 1:
            law = f"A question must be that of one task, but {both(asked)} have it: name one as `model`."
            raise RefusedError(400, law, "questions")
        if asked:
            return tasks[asked[0]]
        if question.name is not None and question.name in tasks:
            return tasks[question.name]
        if len(tasks) == 1 and not may_be_other:
            return next(iter(tasks.values()))
        law = "A question must be that of a task, or have its name, but no task here answers it."
        raise RefusedError(400, law, "questions")


def by_question(tasks: Mapping[str, ServedAdapter]) -> dict[str, list[str]]:
    """Return the names of the tasks that have each `question`."""
    names = dict[str, list[str]]()
    for name, adapter in tasks.items():
        if words := (adapter.manifest.task.question or "").strip():
            names.setdefault(words, []).append(name)
    return names


def reading(question: Question, kind: TaskKind) -> tuple[Shares, bool]:
    """Return what makes the shares of an answer to a question, and whether labels of the task are left out of them.

    Raises:
        RefusedError: the task cannot answer it.
    """
    task, labels = kind.task, {composed(label): label for label in kind.task.labels if kind.has_shares}

    def refused(law: str, got: str) -> RefusedError:
        return RefusedError(400, f"{law}, but {task.name} {got}.", "questions")

    if question.type == "score":
        if len(kind.levels) != len(question.levels):
            has = f"has {len(kind.levels) or 'no'} levels{': ' * bool(kind.levels)}{', '.join(kind.levels)}"
            raise refused(f"A score of {len(question.levels)} levels needs a task with as many", has)
        places = {composed(name): place for place, name in enumerate(kind.levels)}
        if any(places.get(composed(name), place) != place for place, name in enumerate(question.levels)):
            raise refused("Levels with names of the task's must be in its order", f"has {', '.join(kind.levels)}")
        return kind.level_shares, False
    if question.type == "predicate":
        true, law = kind.true_label, "A predicate needs a task with a `true_label`"
        if labels and not kind.is_exclusive:
            wanted = (question.instructions.strip(), question.name or "")
            true = next((labels[name] for name in map(composed, wanted) if name in labels), None)
            law = f"A predicate must have one of the labels {one_of(labels)} as its instructions or name"
        if not labels or true is None:
            raise refused(law, f"answers with {one_of(labels) or 'no labels'}")
        return lambda answer: [dict(answer.probabilities or {})[true]], False
    if not labels or not kind.is_exclusive:
        raise refused("A choice needs a task with one label a row", "has none" if not labels else "gives several")
    folded = {label.casefold(): label for label in labels.values()}
    chosen = list[str]()
    for option in question.options:
        label = folded.get(str(option).lower()) if isinstance(option, bool) else labels.get(composed(option))
        if label is None:
            raise refused(
                f"An option must be a label (one of: {one_of(labels, option)})", f"has no {shortened(option)}"
            )
        chosen.append(label)
    if len(set(chosen)) < len(chosen):
        raise refused("Options must be different labels", f"has one for two of {shortened(list(question.options))}")

    def shares(answer: Prediction) -> list[float]:
        own = [dict(answer.probabilities or {})[label] for label in chosen]
        total = sum(own)
        return [share / total if total else 1 / len(own) for share in own]

    return shares, len(chosen) < len(labels)


@dataclass
class Plan:
    """What is computed for a request.

    Args:
        jobs: By the digest of their adapter; each gives `Answered` of one row.
        readings: Of each question that a task answers: digest, shares, whether labels are left out.
        reasons: Why no task answers the others, by key.
    """

    questions: Sequence[Question]
    jobs: dict[str, Job] = field(default_factory=dict)
    readings: dict[int | str, tuple[str, Shares, bool]] = field(default_factory=dict)
    reasons: dict[int | str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        body: DecisionBody,
        tasks: Mapping[str, ServedAdapter],
        routing: Routing,
        limits: Limits,
        *,
        may_be_other: bool,
    ) -> Plan:
        """Find the task of each question, and make the job of each task: a row that all its questions share.

        Raises:
            RefusedError: there are too many questions, or what they are asked of is too long or not read.
        """
        plan, source = cls(body.asked()), body.source()
        limits.check_count(len(plan.questions), "questions")
        text, filled, names = canonical(source), source, by_question(tasks)
        limits.check_size("the input", len(text), "input")
        if isinstance(source, str) and source.lstrip().startswith("{"):  # a client may send JSON as text
            with contextlib.suppress(ValueError, RecursionError):
                filled = json.loads(source)
        for question in plan.questions:
            try:
                adapter = routing.find(question, tasks, names, may_be_other=may_be_other)
                shares, is_restricted = reading(question, adapter.kind)
                if adapter.digest not in plan.jobs:
                    plan.jobs[adapter.digest] = _job(adapter, text, filled)
            except LoraxsError as error:
                plan.reasons[question.key] = error.message
            else:
                plan.readings[question.key] = adapter.digest, shares, is_restricted
        return plan

    def answers(self, results: Mapping[str, Answered]) -> Iterator[Decision]:
        """Yield the answers to the questions that tasks answer.

        Args:
            results: Of `jobs`, by the same digests.
        """
        for question in self.questions:
            if question.key in self.readings:
                digest, shares, is_restricted = self.readings[question.key]
                adapter, result = self.jobs[digest].adapter, results[digest]
                assert adapter is not None  # the bare base answers no question
                extra: Json = {"x_task": f"{adapter.task}:{adapter.version}"}
                extra |= {"x_restricted": True} if is_restricted else {}
                extra |= {"x_truncated": True} if result.num_cut else {}
                answer = result.predictions[0]
                if answer.sure_at is not None and not is_restricted:
                    extra["x_sure"] = [point for point, is_sure in answer.sure_at.items() if is_sure]
                yield Decision(question, shares(answer), extra)


def _job(adapter: ServedAdapter, text: str, filled: Any) -> Job:
    """Return the job of one row.

    Raises:
        RefusedError, TaskDataError: the task does not read such a row.
    """
    columns = adapter.kind.question_columns
    row: tuple[Any, ...] = (text,)
    if isinstance(filled, dict) and set(filled) == set(columns):
        row = tuple(filled[name] for name in columns)
    elif len(columns) > 1:
        law = f"{adapter.task} reads a JSON object with {both(columns)}, but got another input."
        raise RefusedError(400, law, "input")
    size = sum(adapter.kind.num_sequences(adapter.kind.questions([row])))
    return answering_job(adapter, [row], SourceLocation("the request"), size)

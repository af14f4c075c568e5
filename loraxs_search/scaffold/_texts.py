"""What a user reads of a drafted space: its YAML, what was guessed, and warnings."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2

from loraxs_search.records.base import BaseModelRef
from loraxs_search.scaffold._roles import Roles
from loraxs_search.scaffold.answers import CHOOSING, CLASSES, NUMBERS, WRITING, Choices, alike_names, doubtful_classes
from loraxs_search.tasks.tables import Table


def render(facts: Mapping[str, Any]) -> str:
    """Return the YAML; lines without a comment end without space."""
    lines = _TEMPLATE.render(scalar=scalar, flow=_flow, listed=listed, **facts).split("\n")
    return "".join(f"{_aligned(line)}\n" for line in lines)


def listed(values: Sequence[Any]) -> str:
    """Return a list as YAML in one line."""
    return f"[{', '.join(map(scalar, values))}]"


def _aligned(line: str) -> str:
    """Put a comment behind a value where the others begin."""
    value, mark, comment = line.partition(_MARK)
    return f"{value.rstrip():<{_COMMENTS_AT}}  # {comment}" if mark and value.strip() else line.rstrip()


def _flow(values: Mapping[str, Any]) -> str:
    """Return a mapping as YAML in one line; its values may be mappings."""
    parts = (f"{name}: {_flow(each) if isinstance(each, Mapping) else scalar(each)}" for name, each in values.items())
    return f"{{{', '.join(parts)}}}"


def scalar(value: Any) -> str:
    """Return a value as YAML that no reader takes for something else."""
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text) and text.lower() not in _WORDS
    if plain:
        return text
    return in_one_line(json.dumps(text, ensure_ascii=False))


def in_one_line(text: str) -> str:
    """Return a text with what YAML refuses, or takes for the end of a line, written out."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@dataclass
class Measured:
    """Tokens of rows, as the base counts them."""

    max_length: int
    answer_tokens: int = 0
    cut: int = 0
    mean_tokens: float = 0.0
    reason: str = ""
    warnings: list[str] = field(default_factory=list)


_FEW_ROWS = 200
_MAX_SHOWN = 20  # classes that are listed


@dataclass(frozen=True)
class Plan:
    """How long a search is; steps and trials fit a budget if there is no GPU."""

    steps: int
    trials: int
    candidates: int
    seeds: int
    time_budget: str = ""


def guesses_of(  # each is a source of guesses
    table: Table,
    roles: Roles,
    base: BaseModelRef,
    measured: Measured,
    choices: Choices,
    copy: str,
    held_out: Mapping[str, Table],
) -> dict[str, str]:
    """Return what was guessed, by name, with the reason."""
    beside = "" if choices.test else " (beside the training rows)"
    counts = _counted(roles.label_counts)
    if roles.kind == NUMBERS and not choices.label:
        counts = "numbers (--label names another column)"
    remark = f" ({table.remark})" if table.remark else ""
    if copy:
        remark = f" ({table.remark}: the space reads {copy}, a plain copy; change rows there)"
    guesses = {
        "rows": table.remark if table.remark and not table.is_file else f"{table.num_rows} in {table.name}{remark}",
        **{split: f"{own.num_rows} in {own.name}{beside}" for split, own in held_out.items()},
        "kind": roles.kind + ("" if choices.kind else _ratings(roles)),
        "texts": ", ".join(roles.texts),
        "answers": f"{roles.label}: {counts}" if counts else roles.label,
        "base": base.id,
        "max_length": measured.reason,
    }
    if roles.unused:
        most = 2 if roles.kind in (CLASSES, NUMBERS) else None
        more = (*roles.texts, *roles.unused)[:most]
        way = f" (to read more columns: --text {shlex.quote(','.join(more))})" if more != roles.texts else ""
        guesses["unused"] = ", ".join(roles.unused) + way
    options = roles.options if isinstance(roles.options, str) else ", ".join(roles.options or ())
    if options and roles.option_names:
        options += f" (in {roles.label}: {', '.join(roles.option_names)})"
    elif options and all(str(answer).strip().isdecimal() for answer in table.columns[roles.label]):
        options += f" (in {roles.label}: counted from 0)"
    return guesses | ({"options": options} if options else {})


def _ratings(roles: Roles) -> str:
    """Return a remark where classes are the numbers of a scale."""
    if roles.kind != CLASSES or len(roles.labels) <= 2 or not all(map(str.isdecimal, roles.labels)):
        return ""
    numbers = [int(name) for name in roles.labels]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return ""
    return f" (are {numbers[0]} to {numbers[-1]} a scale, as of stars? --kind regression learns their order)"


def _counted(counts: Mapping[str, int]) -> str:
    """Return classes with their rows; of many, how many there are."""
    if len(counts) > _MAX_SHOWN:
        return f"{len(counts)} classes of {min(counts.values())} to {max(counts.values())} rows"
    return ", ".join(f"{name} ({number})" for name, number in counts.items())


def warnings_of(table: Table, roles: Roles, measured: Measured, choices: Choices, *, is_carved: bool) -> list[str]:
    """Return what makes the result of a search less sure than it looks."""
    warnings = list(measured.warnings)
    if is_carved and table.num_rows < _FEW_ROWS:
        held_out = max(1, round(table.num_rows / 10))
        error = f", with a standard error of up to {(0.25 / held_out) ** 0.5:.2f}" if roles.kind != NUMBERS else ""
        warnings.append(f"{table.num_rows} rows are few: a tenth, {_rows(held_out)}, is scored{error}")
    if measured.cut:
        lost = "prompts lose their beginnings" if roles.kind in (WRITING, CHOOSING) else "ends are cut off"
        warnings.append(f"about {_rows(measured.cut)} longer than max_length: their {lost}")
    warnings += [
        f"label {name!r} ({_rows(roles.label_counts[name])}) may say that the answer is missing: if so, remove the rows"
        for name in doubtful_classes(() if choices.labels or roles.label in table.label_names else roles.label_counts)
    ]
    if (counts := roles.label_counts) and roles.kind == CLASSES:
        warnings += _contradictions(table, roles)
        if not choices.labels and (alike := alike_names(counts, table.num_rows)):
            pairs = ", ".join(f"{name!r} like {near!r}" for name, near in alike.items())
            warnings.append(f"labels that look alike are learnt as classes of their own: {pairs}")
        rarest, number = min(counts.items(), key=lambda each: each[1])
        if number * 10 < table.num_rows / len(counts):
            warnings.append(f"label {rarest!r} is rare ({_rows(number)}): accuracy says little of it, see macro_f1")
    return warnings


def _contradictions(table: Table, roles: Roles) -> list[str]:
    """Warn of texts that have different labels."""
    rows: dict[tuple[str, ...], dict[str, int]] = {}
    texts = zip(*(table.columns[name] for name in roles.texts), strict=True)
    for row, (own, label) in enumerate(zip(texts, table.columns[roles.label], strict=True)):
        rows.setdefault(tuple(map(str, own)), {}).setdefault(str(label).strip(), row)
    if not (twice := [labels for labels in rows.values() if len(labels) > 1]):
        return []
    shown = ", ".join(f"{table.place(row)} ({label})" for label, row in twice[0].items())
    return [f"{len(twice)} text{'s have' if len(twice) > 1 else ' has'} different labels, such as {shown}"]


def _rows(number: int) -> str:
    return f"{number} row{'s' * (number != 1)}"


_COMMENTS_AT = 36
_MARK = "\0"  # before the comments of the template: no value has it
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # refused by YAML, or ends of lines to it
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
_TEMPLATE = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(
    """\
# {{ source }}: written by `loraxs-search init`. Change what was guessed wrong.
{% if copy %}
# Rows are read from {{ copy }}, a copy of {{ source }}: change them there. For a new {{ source }},
# run `init --force` again.
{% endif %}
#
# Check:  loraxs-search check {{ path }} --data
# Run:    loraxs-search launch {{ path }}
# yaml-language-server: $schema={{ schema }}

task:
  name: {{ scalar(name) }}  # the registry keeps a champion for each task name
  kind: {{ roles.kind }}
  data: {{ flow(data) }}{{ "  # " + set_aside if set_aside else "" }}
{% if writes %}
  prompt: {{ scalar(prompt) }}  # columns in braces
  answer: {{ scalar(answer) }}  # learnt: these tokens and the end
{% if measured.answer_tokens %}
  generation: {max_new_tokens: {{ measured.answer_tokens }}}  # the longest answer has {{ measured.answer_tokens - 2 }}
{% endif %}
{% elif chooses %}
  prompt: {{ scalar(prompt) }}  # columns in braces
  options: {{ options }}
{% if roles.option_names %}
  option_names: {{ listed(roles.option_names) }}
{% endif %}
  label: {{ scalar(roles.label) }}
{% else %}
  columns: {{ flow(columns) }}
{% if roles.labels %}
  labels: {{ listed(roles.labels) }}
{% endif %}
{% endif %}
{% if writes %}
  metrics: {{ listed(metrics) }}  # candidates go by the first one, running trials by the loss
{% else %}
  metrics: {{ listed(metrics) }}  # the search goes by the first one
{% endif %}
{% if writes or chooses %}
  max_length: {{ measured.max_length }}  # tokens of both: a long prompt loses its beginning, an answer must fit
{% else %}
  max_length: {{ measured.max_length }}  # tokens of a row; longer ones lose their ends
{% endif %}
{% if scored %}
  validation_rows: {{ scored }}  # scored at each report; candidates are scored on all of them
{% endif %}

base_model:
  id: {{ scalar(base.id) }}
{% if base.package %}
  package: {{ base.package }}
{% endif %}

parameters:
  rank: {choice: [8, 16, 32]}
  target_modules: {choice: [attention, all-linear]}
{% if writes or chooses %}
  learning_rate: {log_uniform: [5.0e-4, 1.0e-2]}
{% else %}
  learning_rate: {log_uniform: [2.0e-3, 1.6e-2]}
  head_learning_rate: {log_uniform: [2.0e-3, 2.0e-2]}
{% endif %}
  batch_size: {{ batch }}

search:
  trials: {{ plan.trials }}
  max_steps: {{ plan.steps }}  # {{ passes }}
  report_every: {{ every }}  # weak trials stop early
{% if plan.time_budget %}
  time_budget: {{ plan.time_budget }}  # for all of it; this machine has no GPU
{% endif %}

promotion:
  candidates: {{ plan.candidates }}
  seeds: {{ plan.seeds }}  # the best trials are trained again from so many seeds
""".replace("  # ", _MARK)
)

"""The text of a space that is drafted: what people read and change."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2


def render(facts: Mapping[str, Any]) -> str:
    """Return the YAML; lines without a comment end without space."""
    lines = _TEMPLATE.render(scalar=_scalar, flow=_flow, listed=_listed, **facts).split("\n")
    return "".join(f"{_aligned(line)}\n" for line in lines)


def _listed(values: Sequence[Any]) -> str:
    """Return a list as YAML in one line."""
    return f"[{', '.join(map(_scalar, values))}]"


def _aligned(line: str) -> str:
    """Put a comment behind a value where the others begin."""
    value, mark, comment = line.partition(_MARK)
    return f"{value.rstrip():<{_COMMENTS_AT}}  # {comment}" if mark and value.strip() else line.rstrip()


def _flow(values: Mapping[str, Any]) -> str:
    """Return a mapping as YAML in one line; its values may be mappings."""
    parts = (f"{name}: {_flow(each) if isinstance(each, Mapping) else _scalar(each)}" for name, each in values.items())
    return f"{{{', '.join(parts)}}}"


def _scalar(value: Any) -> str:
    """Return a value as YAML that no reader takes for something else."""
    text = str(value)
    plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", text) and text.lower() not in _WORDS
    if plain:
        return text
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def in_one_line(text: str) -> str:
    """Return a text as a comment has it, which a line end would end."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_COMMENTS_AT = 36
_MARK = "\0"  # before the comments of the template: no value has it
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # refused by YAML, or ends of lines to it
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
_TEMPLATE = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False).from_string(
    """\
# {{ source }}: written by `loraxs-search init`. Change what was guessed wrong.
{% if copy %}
# Rows are read from {{ copy }}, a copy of {{ source }}: change them there. For a new {{ source }},
# remove the copy and this file, and run `init` again.
{% endif %}
#
# Check:  loraxs-search check {{ path }} --data
# Run:    loraxs-search launch {{ path }}
# yaml-language-server: $schema={{ schema }}

task:
  name: {{ scalar(name) }}  # the registry keeps a champion for each task name
  kind: {{ roles.kind }}
  data: {{ flow(data) }}  # {{ set_aside }} set aside for validation and the test
{% if writes %}
  prompt: {{ scalar(prompt) }}  # columns in braces
  answer: {{ scalar(answer) }}  # learnt: these tokens and the end
{% if measured.answer_tokens %}
  generation: {max_new_tokens: {{ measured.answer_tokens }}}  # the longest answer has {{ measured.answer_tokens - 2 }}
{% endif %}
{% elif chooses %}
  prompt: {{ scalar(prompt) }}  # columns in braces
  options: {{ scalar(roles.options) }}
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
  learning_rate: {log_uniform: [2.0e-3, 3.0e-2]}
  head_learning_rate: {log_uniform: [2.0e-3, 2.0e-2]}
{% endif %}
  batch_size: {{ batch }}

search:
  trials: {{ 4 if writes or chooses else 12 }}
  max_steps: {{ steps }}  # {{ passes }}
  report_every: {{ every }}  # weak trials stop early

promotion:
  candidates: {{ 2 if writes or chooses else 3 }}
  seeds: {{ 0 if writes or chooses else 2 }}  # the best trials are trained again from so many seeds
""".replace("  # ", _MARK)
)

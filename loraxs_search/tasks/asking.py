"""What pages on an adapter say: how it is asked, how its base is found, what its data are called.

Markdown and Python code, made without torch.

A base that an installed distribution carries may have other weights than the hub's model of its id: they are rounded in
a GGUF file. There the code asks for that very folder.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from loraxs_search.records.task import BaseModelRef, Serving
from loraxs_search.tasks.kinds._base import TaskKind
from loraxs_search.tasks.kinds._language_model import DATE, Template
from loraxs_search.tasks.kinds.labelled import PAIR_SEPARATOR

_DATED = r"""import datetime, re
day = datetime.date.fromisoformat("{}")  # that of training, where the template writes one
dated = re.compile(r"strftime_now\((['\"])(.*?)\1\)")
template = dated.sub(lambda call: repr(day.strftime(call[2])), tokenizer.get_chat_template())"""


def prompt_section(serving: Serving) -> str:
    """Return what stood before answers in training, and how these are written."""
    if serving.prompt is None:
        shown = "\n\n".join(f"{role}: {content}" for role, content in serving.messages)
        how = "It was trained on these messages, through the tokenizer's chat template, with columns in braces:"
    else:
        shown, how = serving.prompt, "It was trained behind this prompt, with columns in braces:"
    drawn = f"drawn at temperature {serving.temperature:g}" if serving.temperature else "the likeliest token each time"
    ends = [f"after {serving.max_new_tokens} tokens"] if serving.max_new_tokens is not None else []
    ends += [f"before `{json.dumps(text, ensure_ascii=False)}`" for text in serving.stop]
    token = " or ".join(f"`{name}`" for name in serving.ends) or "the end token"
    written = f"Answers are written with {drawn}, and end at {token}, or {' or '.join(ends)}."
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", shown)), default=0))  # whatever is in the text
    return f"{how}\n\n{fence}text\n{shown}\n{fence}\n\n{written}"


def asking_code(serving: Serving) -> str:
    """Return lines of Python that ask `model` with `tokenizer`, using only transformers."""
    options = ", ".join(f"{name}={value!r}" for name, value in serving.generation_options.items())
    ends = f"tokenizer.convert_tokens_to_ids({list(serving.ends)!r})" if serving.ends else "tokenizer.eos_token_id"
    stop = f", stop_strings={list(serving.stop)!r}, tokenizer=tokenizer" if serving.stop else ""

    def filled(text: str) -> str:  # with the columns' names for their values
        template = Template.of(text)
        return template.fill({name: f"<{name}>" for name in template.columns})

    if serving.prompt is None:
        messages = [{"role": role, "content": filled(content)} for role, content in serving.messages]
        template = 'chat_template=template, add_generation_prompt=True, return_dict=True, return_tensors="pt"'
        given = f"""{_DATED.format(DATE)}
messages = {messages!r}
inputs = tokenizer.apply_chat_template(messages, {template})"""
    else:
        given = f'prompt = {filled(serving.prompt)!r}\ninputs = tokenizer(prompt, return_tensors="pt")'
    cut = f"\nfor stop in {list(serving.stop)!r}:\n    answer = answer.partition(stop)[0]" if serving.stop else ""
    return f"""{given}
model.generation_config = transformers.GenerationConfig({options}, eos_token_id={ends})
written = model.generate(**inputs{stop})
new = written[0, inputs["input_ids"].shape[1]:]
answer = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False){cut}
print(answer)"""


def asking_notes(kind: TaskKind) -> str:
    """Return how two texts are put to a tokenizer that joins them with nothing between, and what answer logits make."""
    task, notes = kind.task, ""
    if task.text_pair is not None:
        where = f"Where the tokenizer puts nothing between {task.text} and {task.text_pair}"
        notes = f"\n\n{where}, the second one begins with {json.dumps(PAIR_SEPARATOR)}."
    if kind.answer_rule:
        notes += f"\n\n`loraxs-search predict` answers with {kind.answer_rule}; a pipeline, with the likeliest one."
    return notes


def loading_code(kind: TaskKind, base: BaseModelRef, *, dtype: str | None = "float32") -> str:
    """Return the lines of Python that load a base for this task with transformers, as `base`.

    Args:
        dtype: Type of a base with a head, which was trained in float32: in bfloat16, outputs of 150,000 are multiples
            of 1024. None means the checkpoint's own.
    """
    model, labels, before, options = kind.model, kind.task.labels, "", ""
    if model.num_outputs is not None:
        options = f", num_labels={model.num_outputs}"
        if labels:
            before = f"labels = {json.dumps(labels, ensure_ascii=False)}\n"
            ids = "label2id={label: number for number, label in enumerate(labels)}"
            options = f", id2label=dict(enumerate(labels)), {ids}"
        if not kind.is_exclusive and (way := dict(model.config).get("problem_type")):
            options += f', problem_type="{way}"'  # transformers' pipeline then takes each label by itself
        options += ", ignore_mismatched_sizes=True"  # a checkpoint's head may be for other labels
        options += f', dtype="{dtype}"' if dtype else ""
    code = base_code(base, options)
    return f"{code.find}{before}base = transformers.{model.auto_class}.from_pretrained({code.arguments})"


class _BaseCode(NamedTuple):
    """How Python code loads a base.

    Args:
        find: The lines that must run before `arguments` mean something; empty where the base's id says it.
        arguments: What `from_pretrained` is given.
        where: The condition under which the code runs.
    """

    find: str
    arguments: str
    where: str


def base_code(base: BaseModelRef, options: str = "") -> _BaseCode:
    """Return how code loads a base, with further `options` of `from_pretrained`."""
    if base.package is None:
        arguments = f'"{base.id}"{options}' + (f', revision="{base.revision}"' if base.revision else "")
        return _BaseCode("", arguments, "where the hub or its cache has the base")
    sha256 = f', sha256="{base.sha256}"' if base.sha256 else ""
    find = f"""from loraxs_search.base_model.locate import locate
from loraxs_search.records.task import BaseModelRef
folder = locate(BaseModelRef("{base.id}", package="{base.package}"{sha256})).path
"""
    where = (
        f"where the Python package `{base.package}` is installed. The base's weights are those in it: the hub's may"
        " differ, and this adapter fits no others"
    )
    return _BaseCode(find, f"folder{options}", where)

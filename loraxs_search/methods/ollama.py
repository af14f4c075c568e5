"""A Modelfile: how Ollama asks an adapter as in training."""

from __future__ import annotations

from pathlib import Path

from loraxs_search.home import write_atomic
from loraxs_search.methods.gguf_lora import FILE
from loraxs_search.records import Manifest, Serving
from loraxs_search.tasks.asking import prompt_section
from loraxs_search.tasks.kinds import Template

_QUOTES = '"""'
_COLUMN, _GIVEN = "\0", "{{ .Prompt }}"


def write_modelfile(manifest: Manifest, title: str, folder: Path, serving: Serving | None) -> None:
    """Write `Modelfile` beside the adapter, and a README.md that says how both are used.

    Args:
        title: Of the method that trained it.
        serving: How it is asked; None where it writes no text.
    """
    write_atomic(folder / "Modelfile", modelfile(manifest.base_model.id, serving))
    write_atomic(folder / "README.md", _readme(manifest, title, serving))


def modelfile(base: str, serving: Serving | None) -> str:
    """Return the Modelfile of an adapter.

    A prompt of one column becomes the template, so that a user gives the column alone. One of several columns, and one
    that the parser cannot quote, is left to the user: then what is given is the whole prompt. Messages go through the
    chat template of the base's own file: all but the last are written down, and the last one is what a user gives.
    """
    lines = [f"# The base as a GGUF file, {base}: put its path here.", "FROM ./base.gguf", f"ADAPTER ./{FILE}"]
    if serving is not None:
        lines += _messages(serving) if serving.prompt is None else _template(serving.prompt)
        lines += [f"PARAMETER stop {quoted}" for text in (*serving.stop, *serving.ends) if (quoted := _quoted(text))]
        if serving.max_new_tokens is not None:
            lines.append(f"PARAMETER num_predict {serving.max_new_tokens}")
        lines += [f"PARAMETER temperature {serving.temperature:g}", f"PARAMETER top_p {serving.top_p:g}"]
        # Ollama's own defaults change what is likeliest, and draw from the 40 likeliest tokens alone.
        lines += ["PARAMETER top_k 0", "PARAMETER repeat_penalty 1"]
    return "\n".join(lines) + "\n"


def _messages(serving: Serving) -> list[str]:
    *before, (_, last) = serving.messages
    lines = []
    for number, (role, content) in enumerate(before):
        template = Template.of(content)
        quoted = None if template.columns else _quoted(template.fill({}))
        keyword = "SYSTEM" if role == "system" and not number else f"MESSAGE {role}"
        lines.append(f"{keyword} {quoted}" if quoted else f"# Give this message of the {role} before: {content!r}")
    if last not in {f"{{{name}}}" for name in Template.of(last).columns}:
        lines.append(f"# Give the whole message of the user, which was in training: {last!r}")
    return lines


def _template(prompt: str) -> list[str]:
    template = Template.of(prompt)
    column = template.columns[0] if len(template.columns) == 1 else None
    if column is not None and (quoted := _quoted(_go(template.fill({column: _COLUMN})).replace(_COLUMN, _GIVEN))):
        return [f"TEMPLATE {quoted}"]
    return [
        f"# Give the whole prompt, which was in training: {prompt!r}",
        f"TEMPLATE {_QUOTES}{_GIVEN}{_QUOTES}",
    ]


def _go(text: str) -> str:
    """Return text as a template of Go gives it back."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str | None:
    """Return text between the quotes that the parser takes lines and quotes in; None where it would end too early."""
    return None if _QUOTES in text or text.endswith('"') else f"{_QUOTES}{text}{_QUOTES}"


def _flags(serving: Serving | None) -> str:
    """Return how llama.cpp is told to write as `predict` does: its own defaults draw tokens, and talk in a chat."""
    if serving is None:
        return ""
    drawn = f"--temp {serving.temperature:g}"
    if serving.temperature:
        drawn += f" --top-p {serving.top_p:g} --top-k 0 --min-p 0"
    limit = "" if serving.max_new_tokens is None else f"-n {serving.max_new_tokens} "
    return f"{'' if serving.prompt is None else '-no-cnv '}{limit}{drawn} "


def _readme(manifest: Manifest, title: str, serving: Serving | None) -> str:
    """Return what the two files are for."""
    ref, name = manifest.base_model, manifest.task.name
    made = "`convert_hf_to_gguf.py` makes it"
    if ref.package is not None:
        made = f"the weights of the Python package `{ref.package}`, no others: its own GGUF file, if it has one"
    prompt = "" if serving is None else f"\n{prompt_section(serving)}\n"
    return f"""# {name}

A {title} adapter for `{ref.id}` as plain LoRA for llama.cpp, exactly; in float32.

With llama.cpp, where `base.gguf` is the base ({made}):

```console
llama-completion -m base.gguf --lora {FILE} {_flags(serving)}-p "..."
```

With Ollama, after putting the base's path into `Modelfile`:

```console
ollama create {name} -f Modelfile
ollama run {name}
```
{prompt}"""

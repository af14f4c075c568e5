"""A plain LoRA adapter as a GGUF file, for llama.cpp, and a Modelfile with which Ollama asks as in training.

Names and the order of rows are those of llama.cpp's own converters (`conversion/`, `convert_lora_to_gguf.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from loraxs_search.errors import UsageError, one_of
from loraxs_search.home import disk_faults, write_atomic
from loraxs_search.manifest import Manifest
from loraxs_search.methods._base import Method
from loraxs_search.methods.export._base import ExportFormat, ExportOptions, LoadedAdapter
from loraxs_search.records.task import Serving
from loraxs_search.tasks.asking import prompt_section
from loraxs_search.tasks.kinds import Template, kind_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loraxs_search.methods._base import PlainLora

FILE = "adapter.gguf"


class GGUF(ExportFormat):
    """Of adapters without a head, on bases whose layers llama.cpp knows."""

    name: ClassVar[str] = "gguf"
    layout: ClassVar[int] = 5

    @classmethod
    def fits(cls, method: Method) -> bool:
        return method.has_plain_lora

    def write(self, adapter: LoadedAdapter, folder: Path, options: ExportOptions) -> None:
        manifest = adapter.manifest
        if kind_of(manifest.task).model.num_outputs is not None:  # llama.cpp has no place for a trained head
            raise UsageError(
                f"`--format gguf` must be of an adapter without a head, but {manifest.task.registered_name} is of kind"
                f" {manifest.task.kind}, which trains one.",
                hint="use --format lora or merged with transformers",
            )
        lora = adapter.method.plain_lora(adapter.peft)
        write_gguf_lora(lora, adapter.base.config, folder / FILE, base=manifest.base_model.id)
        write_atomic(folder / "Modelfile", modelfile(manifest.base_model.id, adapter.serving))
        write_atomic(folder / "README.md", _readme(manifest, adapter.method.title, adapter.serving))


# llama.cpp's name of an architecture by transformers' `model_type`. Mixtures of experts are left out: there, several
# layers are one tensor.
_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
}
# Those whose rotary positions turn neighbouring rows where transformers turns row i and row i + head / 2: each head's
# rows of query and key are put in another order.
_INTERLEAVED = ("llama", "smollm3")


def write_gguf_lora(lora: PlainLora, config: PretrainedConfig, path: Path, *, base: str) -> None:
    """Write the update B A of each layer, in float32; `adapter.lora.alpha` is the rank, so that nothing scales it.

    Args:
        lora: Of a base without a head.
        config: The base's.
        base: Its name, as shown to users.
    Raises:
        UsageError: llama.cpp's names for this architecture, or for one of the layers, are not known.
        HomeError: the file cannot be written.
    """
    import gguf

    if config.model_type not in _ARCHITECTURES:
        raise UsageError(
            "`--format gguf` must be of a base whose layers' names in llama.cpp are known, those of type "
            f"{one_of(_ARCHITECTURES, config.model_type)}, but got {config.model_type!r}.",
            hint="use --format lora or merged, and llama.cpp's own converters",
        )
    architecture = _ARCHITECTURES[config.model_type]
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known: Any = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    names = {module: known.get_name(module) for module in lora.pairs}  # such as `blk.3.attn_q`
    if unknown := [module for module, name in names.items() if name is None]:
        raise UsageError(
            f"`--format gguf` must adapt layers that llama.cpp has, but of {config.model_type} it has no {unknown[0]}.",
            hint="use --format lora or merged",
        )
    rank, heads = lora.rank, {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with disk_faults(path):
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))  # which it divides by each tensor's rank
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base)
        for module, (a, b) in lora.pairs.items():
            if architecture in _INTERLEAVED and (num_heads := heads.get(module.rpartition(".")[2])):
                # Of each head the first row of both halves, then the second of both, and so on.
                rows = b.reshape(num_heads, 2, -1, rank).transpose(1, 2).reshape(b.shape)
            else:
                rows = b
            for side, tensor in (("a", a), ("b", rows)):
                writer.add_tensor(f"{names[module]}.weight.lora_{side}", tensor.float().contiguous().cpu().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


_QUOTES = '"""'
_COLUMN, _GIVEN = "\0", "{{ .Prompt }}"


def modelfile(base: str, serving: Serving | None) -> str:
    """Return the Modelfile of an adapter, which says how it is asked; `serving` is None if it writes no text.

    A prompt of one column becomes the template, so that a user gives only the column. One of several columns, and one
    that the parser cannot quote, is left to the user: then what is given is the whole prompt. Messages go through the
    chat template of the base's own file: all but the last are written down, and the last one is what a user gives.
    """
    lines = [f"# The base as a GGUF file, {base}: put its path here.", "FROM ./base.gguf", f"ADAPTER ./{FILE}"]
    if serving is None:
        return "\n".join(lines) + "\n"
    if serving.prompt is None:
        *before, (_, last) = serving.messages
        for number, (role, content) in enumerate(before):
            template = Template.of(content)
            quoted = None if template.columns else _quoted(template.fill({}))
            keyword = "SYSTEM" if role == "system" and not number else f"MESSAGE {role}"
            lines.append(f"{keyword} {quoted}" if quoted else f"# Give this message of the {role} before: {content!r}")
        if last not in {f"{{{name}}}" for name in Template.of(last).columns}:
            lines.append(f"# Give the whole message of the user, which was in training: {last!r}")
    else:
        template, quoted = Template.of(serving.prompt), None
        if len(template.columns) == 1:  # as a template of Go gives it back
            text = template.fill({template.columns[0]: _COLUMN}).replace("{{", '{{ "{{" }}')
            text = text.replace("{" + _COLUMN, '{{ "{" }}' + _COLUMN)  # three braces would begin with an action
            quoted = _quoted(text.replace(_COLUMN, _GIVEN))
        if quoted is None:
            lines.append(f"# Give the whole prompt, which was in training: {serving.prompt!r}")
        lines.append(f"TEMPLATE {quoted or _quoted(_GIVEN)}")
    for text in (*serving.stop, *serving.ends):
        quoted = _quoted(text)
        lines.append(f"PARAMETER stop {quoted}" if quoted else f"# This ends an answer too: {text!r}")
    if serving.max_new_tokens is not None:
        lines.append(f"PARAMETER num_predict {serving.max_new_tokens}")
    lines += [f"PARAMETER temperature {serving.temperature:g}", f"PARAMETER top_p {serving.top_p:g}"]
    # Ollama's own defaults change what is likeliest, and draw from the 40 likeliest tokens.
    lines += ["PARAMETER top_k 0", "PARAMETER repeat_penalty 1"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str | None:
    """Return text between the quotes that the parser takes lines and quotes in; None if it would end too early."""
    return None if _QUOTES in text or text.endswith('"') else f"{_QUOTES}{text}{_QUOTES}"


def _readme(manifest: Manifest, title: str, serving: Serving | None) -> str:
    """Return README.md: what the two files are for, and how they are used."""
    ref, name = manifest.base_model, manifest.task.registered_name
    made = "`convert_hf_to_gguf.py` makes it"
    if ref.package is not None:
        made = f"the weights of the Python package `{ref.package}`, no others: its own GGUF file, if it has one"
    prompt = options = ""
    if serving is not None:  # by default llama.cpp draws tokens, and chats
        prompt = f"\n{prompt_section(serving)}\n"
        options = "" if serving.prompt is None else "-no-cnv "
        options += "" if serving.max_new_tokens is None else f"-n {serving.max_new_tokens} "
        options += f"--temp {serving.temperature:g} "
        options += f"--top-p {serving.top_p:g} --top-k 0 --min-p 0 " if serving.temperature else ""
    return f"""# {name}

A {title} adapter for `{ref.id}` as plain LoRA for llama.cpp, exactly; in float32.

With llama.cpp, where `base.gguf` is the base ({made}):

```console
llama-completion -m base.gguf --lora {FILE} {options}-p "..."
```

With Ollama, after putting the base's path into `Modelfile`:

```console
ollama create {name} -f Modelfile
ollama run {name}
```
{prompt}"""

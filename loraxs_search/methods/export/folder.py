"""Exports of an adapter folder, each made once and kept beside it."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from dataclasses import replace
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

from loraxs_search.errors import UsageError, one_of, unknown_name
from loraxs_search.home import disk_faults, exclusive, file_sha256, remove_whole, write_atomic
from loraxs_search.methods import method_of
from loraxs_search.methods._base import FILES, NATIVE, ROOT, Method
from loraxs_search.methods._peft import unloaded
from loraxs_search.methods.export._base import ExportFormat, ExportOptions, LoadedAdapter, MergedDtype, OnnxPrecision
from loraxs_search.methods.export.gguf import GGUF
from loraxs_search.methods.export.onnx import ONNX
from loraxs_search.plugins import EntryPoints
from loraxs_search.records.task import BaseModelRef
from loraxs_search.tasks.asking import asking_code, asking_notes, base_code, loading_code, prompt_section
from loraxs_search.tasks.kinds import kind_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from loraxs_search.methods._base import PlainLora

# Where the head reads a pool, for which LoRA's config and transformers have no place, either is a folder for
# sentence-transformers, whose encoder then gives a text's logits.

_logger = logging.getLogger(__name__)
_MAX_MERGE_LOSS = 0.05
_ROUNDED = (
    "The merged model's logits differ from the adapter's by {:.0%} of what the adapter adds to the base's, since {}"
    " rounds small updates away. `pull --format merged --dtype float32` keeps them, in a larger file."
)
_CLASSIFIER_POOLING = {  # what architectures with such a key call it
    "modernbert": {"cls": "cls", "mean": "mean"},
    "eurobert": {"cls": "bos", "mean": "mean"},
}
_ACTIVATIONS = (
    "torch.nn.modules.linear.Identity",
    *(f"torch.nn.modules.activation.{n}" for n in ("Tanh", "ReLU", "GELU")),
)
_FLAGS = {"cls": "cls_token", "mean": "mean_tokens", "last": "lasttoken"}


class PlainLoRAFolder(ExportFormat):
    """Plain LoRA, exactly, whatever method trained the update, for stock PEFT and vLLM's filesystem resolver.

    `--rank N` pads each layer to one rank, for a server that wants one for all adapters. Its README.md says how with
    the task's labels: a config.json would have transformers look for the base beside it. The tokenizer is there too.
    """

    name: ClassVar[str] = "lora"
    options: ClassVar[frozenset[str]] = frozenset({"rank"})
    layout: ClassVar[int] = 7

    @classmethod
    def fits(cls, method: Method) -> bool:
        return method.has_plain_lora

    def write(self, adapter: LoadedAdapter, folder: Path, options: ExportOptions) -> None:
        from loraxs_search.base_model.locate import locate
        from loraxs_search.base_model.reading import pooling_of

        manifest, ref = adapter.manifest, adapter.manifest.base_model
        lora, revision = adapter.method.plain_lora(adapter.peft), locate(ref).revision or ref.revision
        # A name that means something on any machine: the hub's id and commit, or the folder's name.
        is_folder = Path(ref.id).is_absolute()
        base = BaseModelRef(Path(ref.id).name) if is_folder else replace(ref, revision=revision)
        if pooling_of(adapter.base) == "class":
            where = base_code(base).where
            if is_folder:
                where = (
                    f"where `{base.id}` is the folder of the base: put its path in. Its weights must have the sha256"
                    f" {manifest.base_digest}"
                )
            lead = f"A {adapter.method.title} adapter for `{base.id}` as plain LoRA, exactly.\n\n"
            lead += f"With transformers and PEFT, from this folder, {where}:"
            code = f"""import peft, transformers
{loading_code(kind_of(manifest.task), base)}
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
model = peft.PeftModel.from_pretrained(base, ".").eval()"""
            page = _page(adapter, lead, code)
        else:  # pool and head become modules of sentence-transformers
            placing = ""
            if base.package is not None or "/" not in base.id:  # the hub does not have it
                found = base_code(base).find or f'folder = "{base.id}"  # the path of the base\n'
                placing = f"""import json, pathlib
{found}config = pathlib.Path("adapter_config.json")
config.write_text(json.dumps(json.loads(config.read_text()) | {{"base_model_name_or_path": folder}}))
"""
            page = _encoding_page(adapter, before=placing)
            model = unloaded(adapter.base, merge=True)
            _write_pooled_head(model, adapter, folder)
            pairs = {name.removeprefix(f"{model.base_model_prefix}."): pair for name, pair in lora.pairs.items()}
            lora = replace(lora, pairs=pairs, others={}, saved=(), task_type="FEATURE_EXTRACTION")
        write_plain_lora(lora, folder, rank=options.rank, base=base.id, revision=base.revision)
        adapter.tokenizer.save_pretrained(str(folder))
        write_atomic(folder / "README.md", page)


def write_plain_lora(
    lora: PlainLora, folder: Path, *, rank: int | None = None, base: str | None = None, revision: str | None = None
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    lora_alpha = r, so that LoRA's own scaling is one. The size is that of LoRA: r (in + out) numbers per module.

    Args:
        rank: Rank of every module in the file, padded with zeros; None means the adapter's own.
        base: The base's name in the file, which servers compare with their own.
        revision: The base's revision in the file; with `base`.
    Raises:
        UsageError: the adapter has several ranks, or one above `rank`.
        HomeError: the folder cannot be written.
    """
    from peft import LoraConfig
    from safetensors.torch import save
    from torch.nn.functional import pad

    own = lora.rank
    rank = own if rank is None else rank
    if rank < own:
        raise UsageError(
            f"`rank` must be at least the adapter's own, {own}, but got rank={rank}.", hint=f"use --rank {own} or more"
        )
    tensors = dict(lora.others)
    for name, (a, b) in lora.pairs.items():
        tensors[f"{ROOT}{name}.lora_A.weight"] = pad(a.detach().cpu(), (0, 0, 0, rank - own)).contiguous()
        tensors[f"{ROOT}{name}.lora_B.weight"] = pad(b.detach().cpu(), (0, rank - own)).contiguous()
    write_atomic(folder / FILES[1], save(tensors, {"format": "pt"}))
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        fan_in_fan_out=lora.fan_in_fan_out,
        modules_to_save=list(dict.fromkeys(lora.saved)) or None,
        task_type=lora.task_type,
        inference_mode=True,
        base_model_name_or_path=base,
        revision=revision,
    )
    config.target_modules = sorted(lora.pairs)  # PEFT makes a set of it, whose order is another in each process
    with disk_faults(folder):
        config.save_pretrained(str(folder))


class Merged(ExportFormat):
    """A whole model: the base with the update added to its weights, and its tokenizer.

    A warning, also in its README.md, says where the base's type rounds much of the update away. `--dtype float32`
    keeps such an update.
    """

    name: ClassVar[str] = "merged"
    options: ClassVar[frozenset[str]] = frozenset({"dtype"})
    layout: ClassVar[int] = 5

    @classmethod
    def fits(cls, method: Method) -> bool:
        return method.merges

    def write(self, adapter: LoadedAdapter, folder: Path, options: ExportOptions) -> None:
        from transformers import GenerationConfig

        from loraxs_search.base_model.layers import head_names, quiet
        from loraxs_search.base_model.reading import pooling_of

        task, config, pooling = adapter.manifest.task, adapter.base.config, pooling_of(adapter.base)
        says = _CLASSIFIER_POOLING.get(config.model_type, {}).get(pooling)
        if says is not None:
            config.classifier_pooling = says
        is_pooled = pooling != "class" and says is None
        serving = adapter.serving  # of the base as it was
        merged, notice = _merge(adapter)
        if notice:
            _logger.warning("%s", notice)
        if serving is not None:  # stop strings need a tokenizer at each call, so they stay out
            merged.generation_config = GenerationConfig(
                **serving.generation_options,
                eos_token_id=adapter.tokenizer.convert_tokens_to_ids(list(serving.ends)),
                bos_token_id=adapter.tokenizer.bos_token_id,
                pad_token_id=adapter.tokenizer.pad_token_id,
            )
        code = f"""import transformers
model = transformers.{kind_of(task).model.auto_class}.from_pretrained(".").eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(".")"""
        page = _page(adapter, notice, code)
        if is_pooled:
            page = _encoding_page(adapter, notice)
            _write_pooled_head(merged, adapter, folder)
        write_atomic(folder / "README.md", page)
        with quiet():  # of a progress bar
            whole = cast("PreTrainedModel", merged.base_model) if is_pooled else merged
            whole.save_pretrained(str(folder))
        if head_names(merged):  # loaded in the body's type by default, it would round the trained head
            stored = json.loads((folder / "config.json").read_bytes())
            write_atomic(folder / "config.json", json.dumps({**stored, "dtype": "float32"}, indent=2) + "\n")
        adapter.tokenizer.save_pretrained(str(folder))


def _merge(adapter: LoadedAdapter) -> tuple[PreTrainedModel, str]:
    """Return the base with the update in its weights, and what people should know of it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    from loraxs_search.methods.loading import reference_logits

    adapted, probe = adapter.peft, adapter.manifest.probe
    with_update = reference_logits(adapted, probe.input_ids)
    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:  # without the update, but with the trained head
        layer.enable_adapters(False)
    without = reference_logits(adapted, probe.input_ids)
    for layer in layers:
        layer.enable_adapters(True)
    try:
        merged = unloaded(adapter.base, merge=True)
    except (NotImplementedError, ValueError) as error:
        raise UsageError(
            f"`--format merged` must be of an update that PEFT can add to the weights, but it says: {error}",
            hint="leave --format out: native is the adapter as it was trained",
        ) from error
    # How far merging moved the logits, as a share of what the update moves them by at most.
    effect = float((with_update - without).abs().max())
    lost = float((reference_logits(merged, probe.input_ids) - with_update).abs().max())
    loss = lost / effect if effect else 0.0
    return merged, _ROUNDED.format(loss, str(merged.dtype).removeprefix("torch.")) if loss > _MAX_MERGE_LOSS else ""


# ---- for sentence-transformers ---------------------------------------------------------------------------------------
def _write_pooled_head(model: PreTrainedModel, adapter: LoadedAdapter, folder: Path) -> None:
    """Make a folder that holds a body, or an adapter of one, a sentence encoder: pool and head follow the body.

    Args:
        model: The base with the trained head in place, without PEFT.
    Raises:
        UsageError: the head is not linear layers with one of a few functions between them.
    """
    import safetensors.torch

    from loraxs_search.base_model.reading import pooling_of

    task, (layers, activation), pooling = adapter.manifest.task, _linear_head(model), pooling_of(model)
    pool = {"word_embedding_dimension": layers[0].in_features}
    modules = ["", "1_Pooling", *(f"{number}_Dense" for number in range(2, 2 + len(layers)))]
    kinds = ["Transformer", *(name.partition("_")[2] for name in modules[1:])]
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(zip(modules, kinds, strict=True))
    ]
    files = {
        "modules.json": listed,
        "sentence_bert_config.json": {"max_seq_length": task.max_length, "do_lower_case": False},
        "1_Pooling/config.json": pool | {f"pooling_mode_{flag}": how == pooling for how, flag in _FLAGS.items()},
    }
    for path, layer in zip(modules[2:], layers, strict=True):
        files[f"{path}/config.json"] = {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
            "activation_function": _ACTIVATIONS[0] if layer is layers[-1] else activation,
        }
        state = {f"linear.{name}": value.detach().float().contiguous() for name, value in layer.named_parameters()}
        write_atomic(folder / path / "model.safetensors", safetensors.torch.save(state, {"format": "pt"}))
    for name, content in files.items():
        write_atomic(folder / name, json.dumps(content, indent=2) + "\n")


def _linear_head(model: PreTrainedModel) -> tuple[list[nn.Linear], str]:
    """Return the head's layers and the function between them, found by what it computes of made-up rows."""
    import torch
    from torch import nn

    from loraxs_search.base_model.layers import output_head
    from loraxs_search.base_model.reading import close_to, dummy_inputs

    output, before = output_head(model)
    layers = [layer for name in (*before, output) if isinstance(layer := model.get_submodule(name), nn.Linear)]
    if all(first.out_features == second.in_features for first, second in pairwise(layers)):
        with torch.no_grad():
            inputs = dummy_inputs(model)
            pooled, logits = model.base_model(**inputs)[0][:, 0].float(), model(**inputs).logits.float()
            for activation in _ACTIVATIONS:
                x: Tensor = pooled
                for layer in layers[:-1]:
                    x = getattr(nn, activation.rpartition(".")[2])()(layer(x))
                if close_to(layers[-1](x), logits, 1e-4):
                    return layers, activation
    raise UsageError(
        f"The head of {type(model).__name__} must be linear layers with a known function between them, to be one of"
        " sentence-transformers, but it is another.",
        hint="leave --format out: native files say what the head reads; or search with `task.pooling: class`",
    )


def _encoding_page(adapter: LoadedAdapter, notice: str = "", before: str = "") -> str:
    """Return README.md: how sentence-transformers computes logits from this folder.

    Args:
        notice: What people should know first.
        before: Lines of Python that run before the folder is loaded.
    """
    task = adapter.manifest.task
    texts = f'"{task.text}"' if task.text_pair is None else f'("{task.text}", "{task.text_pair}")'
    outputs = f"a row's logits of {json.dumps(task.labels, ensure_ascii=False)}" if task.labels else "a row's number"
    lead = f"A sentence encoder whose embeddings are what the head gives, {outputs}:"
    code = f"""{before}import sentence_transformers
model = sentence_transformers.SentenceTransformer(".")
logits = model.encode([{texts}])"""
    return _page(adapter, f"{notice}\n\n{lead}" if notice else lead, code)


def _page(adapter: LoadedAdapter, lead: str, code: str) -> str:
    """Return README.md: what the folder is, the code that loads it and, where texts are written, how it is asked."""
    task, serving = adapter.manifest.task, adapter.serving
    page = f"# {task.registered_name}\n\n" + (f"{lead}\n\n" if lead else "")
    page += f"```python\n{code}\n```{asking_notes(kind_of(task))}\n"
    if serving is not None:
        page += f"\n{prompt_section(serving)}\n\n```python\n{asking_code(serving)}\n```\n"
    return page


FORMATS: EntryPoints[type[ExportFormat]] = EntryPoints(
    "--format", "loraxs_search.export_formats", PlainLoRAFolder, Merged, GGUF, ONNX
)
_NO_OPTIONS = ExportOptions()
_VALUES: dict[str, tuple[str, ...]] = {"dtype": get_args(MergedDtype), "precision": get_args(OnnxPrecision)}


def check_options(form: str, options: ExportOptions) -> None:
    """Refuse options that a format does not take, values that they do not have, and unknown formats.

    Raises:
        UsageError: as said.
    """
    if form not in (names := [NATIVE, *FORMATS.names()]):
        raise UsageError(unknown_name("--format", form, names), hint="see `loraxs-search pull --help`")
    taken = frozenset[str]() if form == NATIVE else FORMATS.get(form).options
    for name in options.given.keys() - taken:
        takers = one_of([other for other, entry in FORMATS.importable().items() if name in entry.options])
        raise UsageError(f"`--{name}` must go with --format {takers}, but got {form!r}.")
    for name, known in _VALUES.items():
        if (value := options.given.get(name)) is not None and value not in known:
            raise UsageError(f"`--{name}` must be one of: {one_of(known, value)}, but got {value!r}.")
    rank: Any = options.rank
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1):
        raise UsageError(f"`--rank` must be a whole number from 1, but got {rank!r}.")


def converted(folder: Path, form: str, options: ExportOptions = _NO_OPTIONS) -> Path:
    """Return an adapter in another format, made once and kept beside `folder`.

    It appears whole, and is made again if its files were changed.

    Args:
        folder: A verified adapter folder.
        options: That passed `check_options`.
    Raises:
        UsageError: the adapter has no such format.
        BaseModelError: the adapter cannot be loaded here.
    """
    import torch

    from loraxs_search.manifest import read_manifest
    from loraxs_search.methods.loading import load_adapter_folder

    manifest = read_manifest(folder)
    method = method_of(manifest.hyperparameters)
    entry = FORMATS.get(form)
    if not entry.fits(method):
        known = [NATIVE, *(name for name, other in FORMATS.importable().items() if other.fits(method))]
        raise UsageError(
            f"`--format` must be one of: {one_of(known, form)} for an adapter of method"
            f" {method.name}, but got {form!r}.",
            hint="leave --format out: native is the adapter as it was trained",
        )
    # Exports of one format are told apart by their options: `-r8`, `-float32`, `-int8`.
    which = "".join(f"-r{value}" if name == "rank" else f"-{value}" for name, value in options.given.items())
    target = folder.with_name(f"{folder.name}.{form}{which}")
    note = target.with_name(f"{target.name}.json")
    building = target.with_name(f".{target.name}")
    with disk_faults(target), exclusive(building):
        with contextlib.suppress(OSError, ValueError):  # one of them is not there or damaged
            if json.loads(note.read_bytes()) == _digests(target, entry):
                return target
        shutil.rmtree(building, ignore_errors=True)  # of one that was killed
        building.mkdir()
        try:
            model = load_adapter_folder(folder, dtype=getattr(torch, options.dtype) if options.dtype else "checkpoint")
            entry().write(LoadedAdapter(model, manifest, method), building, options)
            write_atomic(note, json.dumps(_digests(building, entry), indent=1))
            remove_whole(target)
            building.rename(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target


def _digests(folder: Path, entry: type[ExportFormat]) -> dict[str, str]:
    digests = {"layout": str(entry.layout)}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):  # several chat templates are a folder
        digests[path.relative_to(folder).as_posix()] = file_sha256(path)
    return digests

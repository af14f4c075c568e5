"""From an adapter folder to a model that is verified to be the trained one."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from loraxs_search.base_model.layers import head_names
from loraxs_search.base_model.load import checked_device, load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer, with_setup
from loraxs_search.errors import BaseModelError, IntegrityError
from loraxs_search.home import disk_faults, file_sha256
from loraxs_search.methods import method_of
from loraxs_search.methods.verification import compare_reference_logits, reference_logits, tolerance
from loraxs_search.records.adapter import Manifest
from loraxs_search.records.task import BaseModel
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.prepared import served

MANIFEST = "manifest.json"


def load_adapter_folder(
    folder: Path, *, base: BaseModel | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
) -> PeftModel | PreTrainedModel:
    """Load an adapter with its base, in eval mode, refusing whatever is not what its manifest says.

    The model's config names the task's labels.

    Files are compared by sha256, the base by weight digest, tokenizer and configuration, factors by fingerprint, and
    logits with the manifest's reference logits, in half precision with a wide tolerance.

    Args:
        folder: Holds manifest.json and the files it lists.
        base: The base model when it is at hand; located from the manifest otherwise.
        dtype: Dtype of the base; None means the checkpoint's own. Factors always come from the checkpoint's weights,
            before the cast; the adapter and the head stay float32.
    Raises:
        IntegrityError: the manifest is missing or unreadable, or a file differs from it.
        BaseModelError: the base cannot be found, or it, the factors or the reference logits are not those of the
            training.
        UsageError: its method is not installed here, or there is no such device.
    """
    checked_device(device)
    manifest, located = verified_manifest(folder, base)
    method = method_of(manifest.hyperparameters)
    body = load_model(located, kind_of(manifest.task).model, device=device)
    if manifest.task.labels:
        body.config.id2label = dict(enumerate(manifest.task.labels))
        body.config.label2id = {label: number for number, label in enumerate(manifest.task.labels)}
    check_ends(manifest, located, body)
    model = method.load(body, folder, device)
    compare_reference_logits(reference_logits(model, manifest.probe.input_ids), manifest.probe, tolerance(model))
    if dtype is not None:
        _cast_body(body, dtype)
    return model


def verified_manifest(folder: Path, base: BaseModel | None = None) -> tuple[Manifest, BaseModel]:
    """Return an adapter folder's manifest and its base, files and weights being what the manifest says.

    Args:
        base: The base model when it is at hand; located from the manifest otherwise.
    Raises:
        IntegrityError, BaseModelError: as `load_adapter_folder`.
    """
    manifest = read_manifest(folder)
    for name, expected in sorted(manifest.files.items()):
        path = folder / name
        actual = file_sha256(path) if path.is_file() else "no file"
        if actual != expected:
            raise IntegrityError(
                f"sha256 of {path} must be {expected}, but got {actual}.", hint="pull the adapter again"
            )
    located = base if base is not None else locate(manifest.base_model)
    if manifest.setup is not None:
        located = with_setup(located)
    if located.weight_digest != manifest.base_digest:
        wanted, got = (f" (revision {ref.revision})" if ref.revision else "" for ref in (manifest.base_model, located))
        raise BaseModelError(
            f"The adapter of trial {manifest.trial_id} was trained on {manifest.base_model.id}{wanted} with weights "
            f"{manifest.base_digest[:16]}..., but {located.path}{got} holds weights {located.weight_digest[:16]}....",
            hint="it has no meaning on other weights: give the base it was trained on, at the same revision",
        )
    if manifest.setup and located.setup and (differs := manifest.setup.difference(located.setup)):
        raise BaseModelError(
            f"The adapter of trial {manifest.trial_id} must be used with the tokenizer and configuration that it was"
            f" trained with, but {located.path} has {differs}.",
            hint="it answers otherwise with others: give the base it was trained on, at the same revision",
        )
    return manifest, located


def check_ends(manifest: Manifest, base: BaseModel, model: PreTrainedModel) -> None:
    """Refuse a base that ends answers at other tokens than in training: generation_config.json is in no digest.

    Args:
        model: Of the base.
    Raises:
        BaseModelError: it does.
    """
    if not manifest.ends:
        return
    settings = getattr(model, "generation_config", None)
    serving = served(kind_of(manifest.task), load_tokenizer(base), settings)
    if serving is not None and {*serving.ends} != {*manifest.ends}:
        raise BaseModelError(
            f"The adapter of trial {manifest.trial_id} must end its answers at {' or '.join(manifest.ends)}, as in its"
            f" training, but {base.path} says {' or '.join(serving.ends) or 'nothing'}.",
            hint="give the base it was trained on, at the same revision, with its generation_config.json",
        )


def read_manifest(folder: Path) -> Manifest:
    """Read an adapter folder's manifest.

    Raises:
        IntegrityError: it is missing, damaged or of another format.
    """
    path = folder / MANIFEST
    try:
        with disk_faults(path):
            return Manifest.parse(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise IntegrityError(
            f"An adapter folder must hold {MANIFEST}, but {folder} has none.",
            hint="give a folder made by `loraxs-search pull`",
        ) from error


def _cast_body(base: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast a base below its head; what adapters on it train stays float32."""
    heads = head_names(base)
    trained = [
        parameter
        for layer in base.modules()
        for name in (layer.adapter_layer_names if isinstance(layer, BaseTunerLayer) else ())
        for parameter in getattr(layer, name).parameters()
    ]
    exact = [parameter.detach().clone() for parameter in trained]
    for name, module in base.named_children():
        if name not in heads:
            module.to(dtype)
    for parameter, value in zip(trained, exact, strict=True):
        parameter.data = value

"""From an adapter folder to a model that is verified to be the trained one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model.layers import head_names
from loraxs_search.base_model.load import checked_device, load_model
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.reading import end_with_eos
from loraxs_search.base_model.tokenizer import load_tokenizer, with_setup
from loraxs_search.errors import BaseModelError, IntegrityError
from loraxs_search.home import file_sha256
from loraxs_search.manifest import Manifest, read_manifest
from loraxs_search.methods import method_of
from loraxs_search.records.adapter import ReferenceLogits
from loraxs_search.records.task import BaseModel
from loraxs_search.tasks.kinds import kind_of
from loraxs_search.tasks.prepared import served


def load_adapter_folder(
    folder: Path,
    *,
    base: BaseModel | None = None,
    dtype: torch.dtype | Literal["checkpoint"] | None = None,
    device: str = "cpu",
) -> PeftModel | PreTrainedModel:
    """Load an adapter with its base, in eval mode, refusing whatever is not what its manifest says.

    The model's config names the task's labels.

    Files are compared by sha256, the base by weight digest, tokenizer and configuration, factors by fingerprint, and
    logits with the manifest's reference logits, in half precision with a wide tolerance.

    Args:
        folder: Holds manifest.json and the files it lists.
        base: The base model when it is at hand; located from the manifest otherwise.
        dtype: Dtype of the base; None means the checkpoint's own, or float32 where a CPU would emulate it, and
            `checkpoint` its own in any case. Factors always come from the checkpoint's weights, before the cast; the
            adapter and the head stay float32.
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
        _cast_body(body, cast("torch.dtype", body.config.dtype) if dtype == "checkpoint" else dtype)
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


# ---- the end-to-end check: inputs made by rule, and the logits that they must give -----------------------------------
NUM_ROWS = 4
NUM_TOKENS = 12
_NUM_LOGITS = 64
_WHOLE, _HALF = 1e-4, 2e-1  # of the largest logit, or of 1; in bfloat16, attention kernels themselves make 0.05


def make_reference_logits(model: PeftModel | PreTrainedModel, vocab_size: int) -> ReferenceLogits:
    """Return the reference logits of a model: 4 rows of 12 tokens by a fixed rule, and their logits.

    Args:
        model: The base in its checkpoint's precision, with an adapter on it.
        vocab_size: Rows of the base's embedding; tokens come from its upper half, away from special tokens.
    """
    low = vocab_size // 2
    tokens = [
        [low + (37 * row + 13 * column + 7 * row * column) % (vocab_size - low) for column in range(NUM_TOKENS)]
        for row in range(NUM_ROWS)
    ]
    input_ids = tuple(tuple(row) for row in end_with_eos(torch.tensor(tokens), model.config).tolist())
    logits = reference_logits(model, input_ids)  # (rows, labels)
    return ReferenceLogits(input_ids=input_ids, logits=tuple(tuple(row) for row in logits.tolist()))


def tolerance(model: nn.Module) -> float:
    """Return by how much the logits of another machine may differ: in half precision, kernels round each layer.

    Of a checkpoint in half precision, they may be computed in float32 here and not there.
    """
    own = getattr(getattr(model, "config", None), "dtype", None)
    return _HALF if {own, *(p.dtype for p in model.parameters())} & {torch.bfloat16, torch.float16} else _WHOLE


def compare_reference_logits(actual: Tensor, reference: ReferenceLogits, atol: float = _WHOLE) -> None:
    """Raise unless logits, as a model gives them, are the reference within `atol`.

    Where logits are larger than 1, so is what rounding makes of them (a language model's of 29: 2e-4 in float32), and
    the difference is held against the largest of them.

    Raises:
        BaseModelError: logits differ, are not finite, or are of another shape.
    """
    actual, expected = _kept(actual), torch.tensor(reference.logits, dtype=torch.float32)
    if actual.shape != expected.shape:
        difference = f"shape {tuple(actual.shape)} where the adapter has {tuple(expected.shape)}"
    elif not (distance := (actual - expected).abs().max()) <= atol * max(1.0, float(expected.abs().max())):  # NaN too
        difference = f"a difference of {float(distance):.3g}"
    else:
        return
    raise BaseModelError(
        f"Logits of the probe must agree within {atol:g}, but got {difference}.",
        hint="the base model, its factors or the adapter's files are not those of the training; pull it again",
    )


def _kept(logits: Tensor) -> Tensor:
    """Return those of logits that are compared: all of one output a row, (rows, labels).

    Of logits of each token, (rows, T, vocabulary), a few of each row's last one. Each of them depends on the whole
    hidden state, so a few tell as much; manifests stay small.
    """
    return logits[:, -1, :_NUM_LOGITS] if logits.dim() == 3 else logits


@torch.no_grad()
def reference_logits(model: PeftModel | PreTrainedModel, input_ids: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return a model's logits of a reference's rows, float32, on the CPU; row by row: not every model has padding."""
    was_training = model.training
    model.eval()
    try:
        rows = torch.tensor(input_ids, device=model.device)[:, None]  # (rows, 1, tokens)
        with torch.autocast(model.device.type, enabled=False):
            logits = torch.cat([model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for ids in rows])
            return _kept(logits).float().cpu()
    finally:
        model.train(was_training)

"""What is done with searches from Python: promote, pull, load, predict. Searching itself is `loraxs_search.search`.

Heavy libraries load when a function needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraxs_search import registry
from loraxs_search.errors import StudyError, UsageError
from loraxs_search.records import Decision, Prediction, Task
from loraxs_search.studies import StudyFolder, list_studies
from loraxs_search.tracking import resolve_uri

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

__all__ = [
    "Prediction",
    "history",
    "load_adapter",
    "predict",
    "promote",
    "pull",
]


def promote(study: str | None = None, *, force: bool = False, tracking_uri: str | None = None) -> Decision:
    """Let the rule of `study` (default: the newest) decide whether its best candidate becomes its task's champion.

    Raises:
        StudyError: there is no such study, or its search has not come to its end.
    """
    folder = StudyFolder.open(study or _newest())
    candidates = folder.candidates()
    if candidates is None:
        raise StudyError(
            f"A study must have come to its end to be promoted, but {folder.name!r} has not.",
            hint=f"go on with `loraxs-search resume {folder.name}`",
        )
    uri = resolve_uri(tracking_uri) if tracking_uri else folder.info.tracking_uri
    paths = {c.trial_id: folder.adapter_path(c.trial_id) for c in candidates}
    decision, _ = registry.Registry(uri).settle(folder.info.promotion, folder.info.task, candidates, paths, force)
    return decision


def history(task: str, *, tracking_uri: str | None = None) -> list[Decision]:
    """Return every decision on `task`, refusals too, oldest first."""
    return registry.Registry(resolve_uri(tracking_uri)).history(task)


def pull(name: str, *, tracking_uri: str | None = None) -> Path:
    """Fetch the adapter that `name` (`TASK`, `TASK@alias`, `TASK:3`) stands for, verified, and return its folder.

    Raises:
        RegistryError: no such task, alias or version, or the task has no champion.
        IntegrityError: the registry's files are not what their manifest says.
    """
    return registry.pull(name, uri=resolve_uri(tracking_uri))


def load_adapter(
    name: str, *, tracking_uri: str | None = None, dtype: torch.dtype | None = None, device: str = "cpu"
) -> PeftModel:
    """Pull `name` (or take an adapter folder) and return it on its base as a PEFT model, ready to use.

    Raises:
        BaseModelError: the base cannot be found or is not the one the adapter was trained on.
        FactorMismatchError: its factors differ from those the adapter was trained in.
    """
    from loraxs_search.adapter import load_adapter_folder

    return load_adapter_folder(_folder(name, tracking_uri), dtype=dtype, device=device)


def predict(name: str, texts: Sequence[str], *, tracking_uri: str | None = None) -> list[Prediction]:
    """Apply the adapter `name` to `texts`; for a pair task, the first and second text of each row in turn."""
    from loraxs_search.adapter import load_adapter_folder
    from loraxs_search.base_model import load_tokenizer, locate
    from loraxs_search.tasks import answer, encode

    folder = _folder(name, tracking_uri)
    manifest = registry.verify(folder)
    firsts, seconds = _rows(manifest.task, texts)
    base = locate(manifest.base_model)
    inputs = encode(manifest.task, load_tokenizer(base), firsts, seconds)
    model = load_adapter_folder(folder, base=base)
    shown = firsts if seconds is None else [f"{a} | {b}" for a, b in zip(firsts, seconds, strict=True)]
    return [answer(manifest.task, text, row) for text, row in zip(shown, _logits(model, inputs), strict=True)]


def _folder(name: str, tracking_uri: str | None) -> Path:
    path = Path(name)
    return path if (path / "manifest.json").is_file() else pull(name, tracking_uri=tracking_uri)


def _newest() -> str:
    names = list_studies()
    if not names:
        raise StudyError("There is no study yet.", hint="start one with `loraxs-search launch movie_reviews`")
    return names[0]


def _rows(task: Task, texts: Sequence[str]) -> tuple[list[str], list[str] | None]:
    if task.text_pair is None:
        return list(texts), None
    if len(texts) % 2:
        raise UsageError(
            f"Task {task.name} takes two texts a row, but got {len(texts)} texts.",
            hint=f"give them in turn: {task.text} then {task.text_pair}",
        )
    return list(texts[::2]), list(texts[1::2])


def _logits(model: PeftModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(**inputs).logits
    return logits.float()

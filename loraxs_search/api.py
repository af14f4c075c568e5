"""What is done with searches from Python: promote, pull, load, predict. Searching itself is `loraxs_search.search`.

Heavy libraries load when a function needs them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraxs_search.errors import RegistryError, StudyError, UnknownTaskError, UsageError
from loraxs_search.home import disk_faults, remove_whole
from loraxs_search.manifest import verify
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.search import Candidate, Decision
from loraxs_search.records.task import Task
from loraxs_search.registry.changes import UNTOUCHED_BASE, Promoter
from loraxs_search.registry.pull import adapter_folder
from loraxs_search.registry.pull import pull as pull_native
from loraxs_search.registry.store import AdapterName, RegisteredAdapter, Registry, TaskSummary
from loraxs_search.studies.folder import StudyFolder, kept_adapter, list_studies
from loraxs_search.studies.record_files import uses

if TYPE_CHECKING:
    import torch
    from pandas import DataFrame
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loraxs_search.methods.export._base import MergedDtype, OnnxPrecision
    from loraxs_search.predictor import Predictor
    from loraxs_search.registry.promotion import Scored

log = logging.getLogger(__name__)


def promote(
    study: str | None = None,
    *,
    force: bool = False,
    require: Literal["constant", "all"] | None = None,
    tracking_uri: str | None = None,
) -> Decision:
    """Let the rule of `study` (default: the newest) decide whether its finalist becomes its task's champion.

    A champion that was scored on other test rows, or stands on another base, is scored anew in this process first.

    Args:
        force: Promote the finalist whatever the rule says.
        require: The rule's `require` for this decision, which says so.
    Raises:
        StudyError: there is no such study, or its search has not come to its end.
        TrackingError: the database that the study records in is gone.
    """
    if study is None and not (names := list_studies()):
        raise StudyError("There is no study yet.", hint="start one with `loraxs-search launch movie_reviews`")
    folder = StudyFolder.open(study or names[0])
    _finished(folder)
    with folder.lock():  # nobody extends the study, removes it or decides about it meanwhile
        candidates, confirmed = _finished(folder), folder.confirmed
        uri = resolve_uri(tracking_uri) if tracking_uri else folder.store_uri()
        task, rule = folder.info.task, folder.info.promotion
        rows = {c.trial_id: path for c in candidates if (path := confirmed.rows_path(c.trial_id)).is_file()}
        if confirmed.base_rows_path.is_file():
            rows[UNTOUCHED_BASE] = confirmed.base_rows_path
        said = () if require in (None, rule.require) else (f"`require: {require}`, for this decision",)
        # A study that was never decided on has used test rows all the same, and so has one that was removed.
        used = sorted({c.test_fingerprint for c in candidates if c.test_metrics} - {""})
        promoter, name = Promoter(uri, task.registered_name), task.registered_name
        seen = [key for own in used for key in (*uses(name, own), *promoter.registry.uses(name, own))]
        decision, _ = promoter.promote(
            rule if require is None else replace(rule, require=require),
            task,
            candidates,
            {c.trial_id: folder.adapter_path(c.trial_id) for c in candidates},
            force,
            rows,
            rescore=lambda champion: _scored_anew(champion, task, uri),
            study=folder.name,
            baseline_answers=folder.baseline_answers(),
            seen=seen,
            reasons=said,
        )
        return decision


def _finished(folder: StudyFolder) -> list[Candidate]:
    candidates = folder.candidates()
    if candidates is None:
        raise StudyError(
            f"A study must have come to its end to be promoted, but {folder.name!r} has not.", hint=folder.next_step()
        )
    return candidates


def _scored_anew(champion: RegisteredAdapter, task: Task, uri: str) -> Scored:
    """Return a registered adapter as it scores on the rows that a task has now."""
    from loraxs_search.registry.evidence import ScoredRows
    from loraxs_search.registry.promotion import Scored
    from loraxs_search.trial.evaluate import score_folder

    scores = score_folder(pull_native(f"{champion.task}:{champion.version}", uri=uri), task)
    said = scores.answers
    rows = ScoredRows.of(
        *(said.predictions, said.labels, said.losses, said.counts, said.correct), confidences=said.confidences
    )
    found = replace(
        champion.candidate,
        test_metrics=scores.metrics,
        data_fingerprint=scores.data_fingerprint,
        test_fingerprint=scores.test_fingerprint,
    )
    return Scored(found, rows)


def report(study: str, *, output: str | Path | None = None) -> Path:
    """Write the report of a study as it stands, also while it runs, and return the file: one HTML file for any browser.

    Args:
        output: The file; by default `report.html` in the study's folder.
    Raises:
        StudyError: there is no such study, or it is damaged.
        HomeError: the file cannot be written.
    """
    from loraxs_search.reports.html.page import write_report

    return write_report(StudyFolder.open(study), None if output is None else Path(output))


def ls(*, limit: int | None = None, tracking_uri: str | None = None) -> list[TaskSummary]:
    """Return every task that has a version, with its champion, by name; the first `limit` of them."""
    return Registry(resolve_uri(tracking_uri)).summaries(limit)


def show(task: str, *, tracking_uri: str | None = None) -> list[RegisteredAdapter]:
    """Return every version of a task's adapters, newest first.

    Raises:
        RegistryError: there is no such task.
    """
    uri = resolve_uri(tracking_uri)
    with _advising(task, uri):
        return Registry(uri).versions(task)


def history(task: str, *, tracking_uri: str | None = None) -> list[Decision]:
    """Return every decision on `task`, refusals, rollbacks and removals too, oldest first.

    Raises:
        UnknownTaskError: nothing was ever decided on a task of this name.
    """
    uri = resolve_uri(tracking_uri)
    decisions = Registry(uri).history(task)
    if not decisions:
        with _advising(task, uri):
            Registry(uri).check_known(task)
    return decisions


def rollback(task: str, *, to: int | None = None, tracking_uri: str | None = None) -> Decision:
    """Make version `to` of a task its champion again; by default the champion before the present one.

    Raises:
        RegistryError: there is no champion, no such version, or none before it.
    """
    return Promoter(resolve_uri(tracking_uri), task).rollback(to)


def remove(name: str, *, force: bool = False, tracking_uri: str | None = None) -> Decision:
    """Delete the version `TASK:3`; a champion only with `force`.

    Raises:
        RegistryError: no such version, or it is a champion.
    """
    parsed = AdapterName.parse(name)
    if parsed.version is None:
        raise RegistryError(f"`version` must be given to remove one, but got {name!r}.", hint="write TASK:3")
    return Promoter(resolve_uri(tracking_uri), parsed.task).remove(parsed.version, force)


def pull(
    name: str,
    *,
    form: str = "native",
    rank: int | None = None,
    dtype: MergedDtype | None = None,
    precision: OnnxPrecision | None = None,
    out: str | Path | None = None,
    tracking_uri: str | None = None,
) -> Path:
    """Fetch the adapter that `name` (`TASK`, `TASK@alias`, `TASK:3`) stands for, verified, and return its folder.

    Args:
        form: `native` as it was trained, or an export format: `lora` the same as plain LoRA, `merged` a whole model,
            `gguf` plain LoRA for llama.cpp and Ollama, `onnx` a graph whose inputs are the adapter, or one of an
            installed distribution.
        rank: Rank that `lora` is padded to with zeros.
        dtype: `float32` for a `merged` model whose base's own type rounds the update away.
        precision: How matrices of `onnx` are stored: `int8`, in a quarter of the bytes.
        out: Folder to copy it to, new or empty; None returns the cache's own.
    Raises:
        RegistryError: no such task, alias or version, or the task has no champion.
        IntegrityError: the registry's files are not what their manifest says.
        UsageError: `out` holds something, or `rank` is below the adapter's own.
        HomeError: `out` or the cache cannot be written.
    """
    if is_export := form != "native" or (rank, dtype, precision) != (None, None, None):
        from loraxs_search.methods.export._base import ExportOptions  # numpy
        from loraxs_search.methods.export.folder import check_options, converted

        options = ExportOptions(rank, dtype, precision)
        check_options(form, options)
    target = None if out is None else Path(out)
    if target is not None:
        with disk_faults(target, "--out"):
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise UsageError(f"`--out` must name a new or empty folder, but {target} holds something.")
    uri = resolve_uri(tracking_uri)
    with _advising(name, uri):
        folder = pull_native(name, uri=uri)
    if is_export:
        folder = converted(folder, form, options)
    if target is None:
        return folder
    is_new = not target.exists()
    place = target.with_name(f".{target.name}.{os.getpid()}") if is_new else target  # may be where a volume is mounted
    with disk_faults(target, "--out"):
        try:
            place.mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.rglob("*")):  # a folder before what is in it
                copied = place / path.relative_to(folder)
                copied.mkdir(exist_ok=True) if path.is_dir() else shutil.copyfile(path, copied)
            if is_new:
                place.rename(target)
        except BaseException:  # a failed copy leaves nothing behind
            if is_new:
                shutil.rmtree(place, ignore_errors=True)
            else:
                for path in folder.iterdir():
                    remove_whole(place / path.name)
            raise
    return target


def load(
    name: str | Path,
    *,
    tracking_uri: str | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> Predictor:
    """Return the adapter `name` on its base, ready to be called with texts, or a DataFrame with the task's columns.

        classify = loraxs_search.load("movie-reviews")
        classify(["a fine film", "a dull one"])

    Args:
        name: As `load_adapter`.
        dtype: Precision of the base; by default the checkpoint's, or float32 where a CPU would emulate it.
    Raises:
        BaseModelError, UsageError: as `load_adapter`.
    """
    from loraxs_search.predictor import Predictor

    return Predictor(folder_of(name, tracking_uri), dtype=dtype, device=device).load()


def load_adapter(
    name: str | Path,
    *,
    tracking_uri: str | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
) -> PeftModel | PreTrainedModel:
    """Return the adapter `name` on its base, ready to use; its config names the task's labels.

    A PEFT model, unless PEFT does not build the method.

    Args:
        name: What `pull` takes; or `STUDY/TRIAL`, an adapter that a search of this machine has kept; or a folder: a
            Path, or a string that says it is one (`./x`, `~/x`, `/x`).
    Raises:
        BaseModelError: the base cannot be found, or it or its factors are not those the adapter was trained on.
        UsageError: there is no such device.
    """
    from loraxs_search.methods.loading import load_adapter_folder

    return load_adapter_folder(folder_of(name, tracking_uri), dtype=dtype, device=device)


def load_tokenizer(name: str | Path, *, tracking_uri: str | None = None) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the base that the adapter `name` was trained on, found where `load_adapter` finds it.

    Args:
        name: As `load_adapter`.
    Raises:
        BaseModelError: the base cannot be found, or has no tokenizer.
    """
    from loraxs_search.base_model.locate import locate
    from loraxs_search.base_model.tokenizer import load_tokenizer

    manifest = verify(folder_of(name, tracking_uri))
    return load_tokenizer(locate(manifest.base_model))


def predict(
    name: str | Path,
    texts: str | Sequence[str | tuple[str, ...] | Mapping[str, Any]] | DataFrame,
    *,
    on_text: Callable[[int, str], None] | None = None,
    tracking_uri: str | None = None,
) -> list[Prediction]:
    """Return the answer of the adapter `name` to each text, or to each row of texts.

    Args:
        name: As `load_adapter`.
        texts: One text, whose answer is a list of one, or several; for a task that reads several columns, such as pairs
            or a prompt with two columns, the texts of each row in turn, or a tuple or a dict by column for each row. Or
            a DataFrame with the task's columns.
        on_text: Called with a row's number and each piece of its answer as it is written, row after row; where answers
            are no texts, never. Without it, rows are written side by side, which takes less time.
    Raises:
        UsageError: `texts` are no texts, too many or few for the task's columns, or a DataFrame that lacks one.
        TaskDataError: a row has nothing to read, or something else than text.
    """
    from loraxs_search.predictor import Predictor
    from loraxs_search.tasks.rows import is_frame, listed

    rows = texts if is_frame(texts) else listed(texts, "texts")  # no list is refused before anything is looked for
    return Predictor(folder_of(name, tracking_uri))(rows, on_text=on_text)


def folder_of(name: str | Path, tracking_uri: str | None = None) -> Path:
    """Return the folder of an adapter that is promoted, that a study has kept, or that is a folder."""
    if isinstance(name, str) and (kept := kept_adapter(name)):
        return kept
    uri = resolve_uri(tracking_uri)
    try:
        with _advising(str(name), uri):
            return adapter_folder(name, uri=uri)
    except UnknownTaskError as error:
        if name in list_studies():
            error.hint = f"{name} is a study: write {name}/TRIAL for one of its trials; {error.hint}"
        raise


@contextlib.contextmanager
def _advising(name: str, uri: str) -> Iterator[None]:
    """Tell who asks for a task that the registry does not know what its newest study on this machine waits for."""
    try:
        yield
    except UnknownTaskError as error:
        task = re.split("[@:]", name)[0]
        for study in list_studies():
            with contextlib.suppress(StudyError):  # a damaged study hides no other
                folder = StudyFolder.open(study)
                if folder.info.task.registered_name == task and folder.info.tracking_uri == uri:
                    error.hint = folder.next_step()
                    break
        raise

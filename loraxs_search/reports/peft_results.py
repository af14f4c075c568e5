"""Results in the form of PEFT's method comparison: one JSON file each, as in `method_comparison/*/results`.

What a study does not record is null: memory, the base's number of parameters, how long evaluations took, the machine,
the dates of models and data sets, PEFT's branch. `valid accuracy` and `test accuracy` are shares of right answers, so
they are null where the task's metric is none; everything a task reports stands beside them as `valid METRIC`. The test
score is that of a finalist: it is null of other adapters. `meta_info.loraxs_search` says where the result is from.

PEFT's own table turns memory into whole numbers, so fill in what is null before you put a result there.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loraxs_search.home import write_atomic
from loraxs_search.records import Candidate, Manifest, TrialRecord, TrialReport
from loraxs_search.registry.manifest import MANIFEST, read
from loraxs_search.reports.comparison import ComparedGroup, Comparison
from loraxs_search.studies import StudyFolder

_PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")
_MACHINE = ("system", "release", "version", "machine", "processor", "accelerator")


def write_peft_results(comparison: Comparison, folder: Path) -> list[Path]:
    """Write a result for the best adapter of each group that has one; one of the same name is replaced.

    Raises:
        HomeError: the folder cannot be written.
    """
    paths = []
    for group in comparison.groups:
        if group.best is not None:
            result = peft_result(comparison, group)
            name = result["run_info"]["experiment_name"].replace("/", "--")
            paths.append(folder / f"{name}.json")
            write_atomic(paths[-1], json.dumps(result, indent=2) + "\n")
    return paths


def peft_result(comparison: Comparison, group: ComparedGroup) -> dict[str, Any]:
    """Return the result of a group's best adapter."""
    assert group.best is not None
    name, _, trial_id = group.best.trial.partition("/")
    adapter = _Adapter(StudyFolder.open(name), trial_id, group.best.method)
    return {
        "run_info": adapter.run_info(),
        "train_info": adapter.train_info(),
        "meta_info": adapter.meta_info() | {"loraxs_search": _origin(comparison, group)},
    }


def _origin(comparison: Comparison, group: ComparedGroup) -> dict[str, Any]:
    """What the form has no place for: where the result is from, and what its scores mean."""
    assert group.best is not None
    return {
        "trial": group.best.trial,
        "compared_by": {comparison.by: group.value},
        "budget": comparison.budget,
        "metric": comparison.task_metric,
        "seed_scores": list(group.seed_scores),
        "adapter_params": group.best.r_parameters,
        "head_params": group.best.head_parameters,
    }


class _Adapter:
    """A complete trial of a study, and what its folder says of it."""

    def __init__(self, folder: StudyFolder, trial_id: str, method: str) -> None:
        self._folder, self._trial_id, self._method = folder, trial_id, method
        self._record: TrialRecord = folder.journal().records[trial_id]
        self._kept: TrialReport = folder.keep_rule.kept(self._record.reports)
        path = folder.adapter_path(trial_id)
        self._manifest: Manifest | None = read(path) if (path / MANIFEST).is_file() else None
        self._config = path / "adapter_config.json"

    def run_info(self) -> dict[str, Any]:
        record = self._record
        return {
            "created_at": datetime.fromtimestamp(record.started_at, UTC).isoformat(timespec="seconds"),
            "total_time": None if record.ended_at is None else record.ended_at - record.started_at,
            "experiment_name": f"{self._method}/{self._folder.name}-{self._trial_id}",
            "peft_branch": None,
            "train_config": self._train_config(),
            "peft_config": json.loads(self._config.read_text()) if self._config.is_file() else None,
            "error_msg": "",
        }

    def train_info(self) -> dict[str, Any]:
        size = self._kept.size
        return {
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_max": None,
            "accelerator_memory_reserved_99th": None,
            "train_time": self._kept.device_s,
            "file_size": size.stored_bytes,
            "num_trainable_params": size.r_parameters + size.head_parameters,
            "num_total_params": None,
            "status": "success",
            "metrics": self._metrics(),
        }

    def meta_info(self) -> dict[str, Any]:
        info, manifest = self._folder.info, self._manifest
        packages: dict[str, str | None] = {}
        for name in _PACKAGES:
            packages |= {f"{name}-version": info.versions.get(name), f"{name}-commit-hash": None}
        base = manifest.base_model if manifest else info.base_model
        return {
            "model_info": {"sha": base.revision, "created_at": None},
            "dataset_info": {info.task.name: {"sha": info.task.source.revision, "created_at": None}},
            "package_info": packages,
            "system_info": dict.fromkeys(_MACHINE),
            "pytorch_info": None,
        }

    # ---- inside ------------------------------------------------------------------------------------------------------
    @property
    def _settings(self) -> Mapping[str, Any]:
        """What decided the trial's numbers: all of it where its adapter is stored, else what it drew."""
        return dataclasses.asdict(self._manifest.hyperparameters) if self._manifest else self._record.params

    def _train_config(self) -> dict[str, Any]:
        info, value = self._folder.info, self._settings.get
        rates = {"lr": value("learning_rate"), "head_lr": value("head_learning_rate")}
        precision = info.search.precision
        return {
            "model_id": info.base_model.id,
            "dtype": None if precision == "auto" else precision,
            "max_seq_length": info.task.max_length,
            "batch_size": value("batch_size"),
            "batch_size_eval": None,
            "max_steps": info.search.max_steps,
            "eval_steps": info.search.report_every,
            "compile": False,
            "use_gc": None,
            "query_template": info.task.settings.get("prompt"),
            "seed": value("seed"),
            "grad_norm_clip": value("max_grad_norm"),
            "optimizer_type": "AdamW",
            "optimizer_kwargs": {**rates, "weight_decay": value("weight_decay")},
            "lr_scheduler": value("lr_schedule"),
            "use_amp": False,
            "autocast_adapter_dtype": True,
            "generation_kwargs": info.task.settings.get("generation"),
            "attn_implementation": None,
            "init_kv_cache_prefix": None,
        }

    def _metrics(self) -> list[dict[str, Any]]:
        """Return an entry a report, and one of the step that is kept, with the score on test rows."""
        reports = self._record.reports
        entries = [self._entry(one, before) for before, one in itertools.pairwise((None, *reports)) if one is not None]
        tested = next((c for c in self._candidates if c.trial_id == self._trial_id), None)
        last = {
            "step": self._kept.step,
            "test accuracy": self._accuracy(tested.test_metrics) if tested else None,
            "train loss": self._kept.train_loss,
            "train samples": self._samples(self._kept),
            "train total tokens": self._kept.num_tokens,
            "forgetting": None,
        }
        return [*entries, last]

    def _entry(self, report: TrialReport, before: TrialReport | None) -> dict[str, Any]:
        seconds = report.device_s - (before.device_s if before else 0.0)
        tokens = report.num_tokens - (before.num_tokens if before else 0)
        return {
            "step": report.step,
            "valid accuracy": self._accuracy(report.metrics),
            **{f"valid {name}": value for name, value in report.metrics.items() if name != "accuracy"},
            "train loss": report.train_loss,
            "train samples": self._samples(report),
            "train time": seconds,
            "eval time": None,
            "tokens / sec": tokens / seconds if seconds > 0 else None,
            "mem allocated avg": None,
            "mem reserved avg": None,
            "elapsed time": None,
        }

    @property
    def _candidates(self) -> Sequence[Candidate]:
        return self._folder.candidates() or ()

    def _accuracy(self, metrics: Mapping[str, float]) -> float | None:
        """Return the task's metric if it is a share of right answers, or the accuracy beside it."""
        from loraxs_search.tasks.kinds import find_metric

        known = find_metric(self._folder.info.task.metric)
        return metrics.get(known.name if known is not None and known.is_share else "accuracy")

    def _samples(self, report: TrialReport) -> int | None:
        rows = self._settings.get("batch_size")
        return None if rows is None else report.step * int(rows)

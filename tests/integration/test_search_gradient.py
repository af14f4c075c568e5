"""A search over the gradient's basis: estimated once, kept by the study, in the file of every adapter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from loraxs_search import assets
from loraxs_search.records import TrialState
from loraxs_search.registry.manifest import read
from loraxs_search.studies import StudyFolder

if TYPE_CHECKING:
    from loraxs_search.search import SearchResult

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]
BASES = "parameters.basis={choice: [top, gradient]}"
RATE = "parameters.learning_rate={log_uniform: [1.0e-4, 1.0e-3]}"


def test_trials_of_a_study_share_one_estimate_and_their_adapters_need_no_study(
    search: Callable[..., SearchResult],
    agree: Callable[..., Any],
    search_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from loraxs_search.methods.loading import load_adapter_folder

    result = search(
        "mixed", BASES, RATE, "search.trials=6", "search.scheduler=none", "parameters.scale={choice: [1, 2]}"
    )
    agree("mixed", 6)
    folder = StudyFolder.open("mixed")
    (digest,) = folder.assets().values()
    assert assets.digest_of(folder.read_asset(digest)) == digest
    drawn = {trial.trial_id: trial.params for trial in result.trials if trial.state is TrialState.COMPLETE}
    assert {params["basis"] for params in drawn.values()} == {"top", "gradient"}
    assert all(("scale" in params) == (params["basis"] == "top") for params in drawn.values())
    shutil.rmtree(search_home / "assets")
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "elsewhere"))
    for trial_id, params in drawn.items():
        manifest = read(folder.adapter_path(trial_id))
        own = manifest.hyperparameters
        assert own.factor_set == (digest if params["basis"] == "gradient" else None)
        assert (own.sigma, own.head_seed) == (("none", 0) if params["basis"] == "gradient" else ("input", None))
        assert bool(manifest.factors) == (params["basis"] == "top")
        path = folder.adapter_path(trial_id) / "adapter_model.safetensors"
        assert manifest.size.stored_bytes == path.stat().st_size
        model = load_adapter_folder(folder.adapter_path(trial_id))
        with torch.no_grad():
            assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()


def test_a_study_that_goes_on_uses_its_first_estimate(
    search: Callable[..., SearchResult], search_home: Path, tiny_space: Path
) -> None:
    import threading

    from loraxs_search.search import SearchInterruptedError, resume

    plan = (
        "parameters.basis=gradient",
        RATE,
        "search.trials=4",
        "search.seed=3",
        "promotion.seeds=0",
        "search.keep_hosts=null",
    )
    whole = search("gradient-whole", *plan, "search.concurrent=1")
    stop = threading.Event()
    stop.set()
    with pytest.raises(SearchInterruptedError):
        search("gradient-halved", *plan, "search.concurrent=1", stop=stop)
    folder = StudyFolder.open("gradient-halved")
    before = dict(folder.assets())
    assert before == StudyFolder.open("gradient-whole").assets(), "the same rows, base and seed"
    shutil.rmtree(search_home / "assets")  # as on a node that has never seen the study
    resumed = resume("gradient-halved")
    assert folder.assets() == before
    assert [trial.params for trial in resumed.trials] == [trial.params for trial in whole.trials]
    for one, other in zip(resumed.trials, whole.trials, strict=True):
        assert [report.metrics for report in one.reports] == [report.metrics for report in other.reports]

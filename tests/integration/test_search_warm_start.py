"""A search that begins with what an earlier one has learnt: whole, killed, and on another machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.shell import start

from loraxs_search.errors import SpaceError
from loraxs_search.records import WarmStart
from loraxs_search.reports import leaderboard
from loraxs_search.search import SearchResult
from loraxs_search.studies import StudyFolder
from loraxs_search.tracking.store import connect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
SHORT = ("search.scheduler=none", "search.max_steps=4", "promotion.seeds=0")
WARM = (*SHORT, "search.trials=4", "search.concurrent=1", "warm_start=[earlier]")


@contextmanager
def away(name: str) -> Iterator[None]:
    """Have no study of that name on this machine."""
    path = StudyFolder.open(name).path
    hidden = path.rename(path.with_name(f".{name}"))
    yield
    hidden.rename(path)


@pytest.fixture
def earlier(search: Callable[..., SearchResult]) -> list[str]:
    """A search to start from, and the ids of its trials, best first."""
    if not StudyFolder.exists("earlier"):
        search("earlier", *SHORT, "search.trials=3", "search.concurrent=1")
    folder = StudyFolder.open("earlier")
    rows = leaderboard(folder.journal().records.values(), folder.info.task)
    return [row.trial_id for row in rows]


def test_the_first_trials_are_the_best_of_the_earlier_search(
    earlier: list[str], search: Callable[..., SearchResult], agree: Callable[..., object]
) -> None:
    before = StudyFolder.open("earlier").journal().records
    whole = search("warm-whole", *WARM)
    agree("warm-whole", 4)
    assert [trial.warm_start for trial in whole.trials] == [*(WarmStart("earlier", name) for name in earlier), None]
    assert [trial.params for trial in whole.trials[:3]] == [before[name].params for name in earlier]
    assert whole.trials[3].params not in [record.params for record in before.values()]
    client = connect(StudyFolder.open("warm-whole").info.tracking_uri)
    experiment = client.get_experiment_by_name("tiny-reviews")
    runs = client.search_runs([experiment.experiment_id], "tags.`loraxs.study` = 'warm-whole'")
    trials = [run.data.tags for run in runs if "trial_id" in run.data.tags]
    origins = {tags["trial_id"]: tags.get("loraxs.warm_start") for tags in trials}
    assert origins == {"00003": None} | {f"{i:05d}": f"earlier/{name}" for i, name in enumerate(earlier)}
    (parent,) = (run for run in runs if "trial_id" not in run.data.tags)
    assert parent.data.params["warm_start"] == "earlier"


@pytest.mark.long
def test_killed_and_resumed_it_begins_with_the_same_whatever_has_become_of_the_earlier_one(
    earlier: list[str], in_search_home: Path, tiny_space: Path, wait_for_reports: Callable[..., None]
) -> None:
    overrides = [part for override in WARM for part in ("--set", override)]
    with start(in_search_home, "launch", str(tiny_space), "--name", "warm-killed", *overrides) as driver:
        wait_for_reports(driver, "warm-killed", 1)
        driver.kill()
    with away("earlier"), start(in_search_home, "resume", "warm-killed") as again:
        out, talk = again.communicate(timeout=600)
    assert again.returncode == 0, talk
    assert f"earlier/{earlier[0]}" in out
    killed, whole = (list(StudyFolder.open(name).journal().records.values()) for name in ("warm-killed", "warm-whole"))
    assert [trial.params for trial in killed] == [trial.params for trial in whole]
    assert [trial.warm_start for trial in killed] == [trial.warm_start for trial in whole]


def test_another_machine_starts_from_the_records(earlier: list[str], search: Callable[..., SearchResult]) -> None:
    expected = StudyFolder.open("warm-whole").warm_trials()
    with away("earlier"):
        search("warm-elsewhere", *WARM, "search.trials=1")
    assert StudyFolder.open("warm-elsewhere").warm_trials().trials == expected.trials[:1]


def test_a_warm_start_from_another_base_is_refused_before_anything_is_written(
    earlier: list[str], search: Callable[..., SearchResult], tiny_base: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_base, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({name: weight / 2 for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(SpaceError, match="2 faults") as caught:
        search("refused", *WARM, f"base_model={other}", "warm_start=[earlier, gone]")
    assert "warm_start[0]: must be a study of this base" in caught.value.message
    assert "must be a study of this machine" in caught.value.message.partition("warm_start[1]: ")[2]
    assert not StudyFolder.exists("refused")

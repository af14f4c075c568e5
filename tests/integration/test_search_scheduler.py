"""A search with a scheduler that another distribution brings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.in_process import InProcess
from support.plugins import write_distribution

from loraxs_search.records.trial import TrialState
from loraxs_search.search.driver.result import SearchResult
from loraxs_search.studies.folder import StudyFolder

pytestmark = [
    pytest.mark.long(part="search"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]

EVERY_SECOND = '''
from typing import Annotated

from pydantic import Field

from loraxs_search.plugins import ParameterSpec
from loraxs_search.schedulers._base import Scheduler


class EverySecond(Scheduler):
    """Stops every second trial that reaches a step."""

    name = "every-second"
    parameters = {"patience": ParameterSpec("int", low=1, default=2)}

    def __init__(self, config):
        super().__init__(config)
        self._reached = []

    def decide(self, trial):
        if trial.step < self.config.parameters["patience"] or trial.trial_id in self._reached:
            return None
        self._reached.append(trial.trial_id)
        return None if len(self._reached) % 2 else f"it was the second one at step {trial.step}"
'''


@pytest.fixture
def shell(tmp_path: Path, search_home: Path, in_search_home: Path) -> InProcess:
    folder = tmp_path / "site"
    group = {"loraxs_search.schedulers": {"every-second": "EverySecond", "gone": "Gone"}}
    write_distribution(folder, "toy_schedulers", EVERY_SECOND, group)
    return InProcess(search_home, tmp_path, folder)


def test_a_scheduler_from_outside_stops_trials_of_a_real_search(
    shell: InProcess, simulated: Callable[..., SearchResult], agree: Callable[..., object]
) -> None:
    plan = ("search.scheduler=every-second", "search.patience=4", "search.trials=4", "promotion.seeds=0")
    with shell.as_there():
        simulated("every-second", *plan, "search.concurrent=1")  # of two at once, who reports first decides
    agree("every-second", 4)
    folder = StudyFolder.open("every-second")
    assert folder.info.search.params["patience"] == 4
    records = folder.journal().records
    pruned = [record for record in records.values() if record.state is TrialState.PRUNED]
    assert len(pruned) == 2
    assert {(record.reason, record.reports[-1].step) for record in pruned} == {("it was the second one at step 4", 4)}


def test_its_keys_are_held_to_its_own_laws(shell: InProcess, tiny_space: Path) -> None:
    for plan, message in (
        ("search.patience=0", "search.patience: must be an integer of at least 1, but got 0."),
        (
            "search.scheduler=every",
            "search.scheduler: must be one of: every-second, asha, none, gone, but",
        ),
        ("search.scheduler=gone", "search.scheduler: must be a scheduler that can be imported"),
    ):
        done = shell.run("check", str(tiny_space), "--set", plan)
        assert done.returncode == 2
        assert message in " ".join(done.stderr.split())

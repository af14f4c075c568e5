"""The trials that run have no processes: their slots pass on to one, and its end costs no report."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from loraxs_search.log.events import ShownEvent, TrialReported
from loraxs_search.log.study_log import SearchView
from loraxs_search.search.driver.launch import launch
from loraxs_search.search.hosts import pool

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]
AT_ONCE, EVERY, STEPS = 12, 10, 60
PLAN = {"trials": AT_ONCE, "pack_size": AT_ONCE, "max_steps": STEPS, "report_every": EVERY, "scheduler": "none"}


class Killer(SearchView):
    """Counts Ray's processes at two reports, and kills one at the first."""

    def __init__(self, descendants: Callable[[int, str], list[int]], title: str) -> None:
        self._descendants, self._title, self._num_reports = descendants, title, 0
        self.processes, self.found = list[int](), list[list[int]]()

    def happened(self, event: ShownEvent) -> None:
        if isinstance(event, TrialReported):
            self._num_reports += 1
            if self._num_reports in (AT_ONCE // 2, 5 * AT_ONCE):
                self.look()

    def look(self) -> None:
        self.processes += self._descendants(os.getpid(), "ray::")
        self.found.append(self._descendants(os.getpid(), self._title))
        if len(self.found) == 1:
            os.kill(self.found[0][0], signal.SIGKILL)


@pytest.mark.parametrize(
    "title", ["TrialAdvancer", pytest.param("HostDirectory", marks=pytest.mark.long(part="search"))]
)
def test_trials_share_one_process_and_lose_no_report_when_it_or_the_owner_of_hosts_is_killed(
    title, simulated, tiny_space, agree, descendants, monkeypatch
):
    monkeypatch.setattr(pool, "start_named", pool.start_named.__wrapped__)  # not one that other searches share
    others = set(descendants(os.getpid(), "ray::")) - set(
        descendants(os.getpid(), "ray::IDLE", 0)
    )  # idle ones take new work
    killer: Any = Killer(lambda *of: [pid for pid in descendants(*of) if pid not in others], title)
    overrides = [f"search.{name}={value}" for name, value in PLAN.items()]
    result = launch(str(tiny_space), name=title, overrides=[*overrides, "promotion.seeds=0"], view=killer)
    agree(title, AT_ONCE)
    first, second = killer.found
    assert (len(first), len(second)) == (1, 1)
    assert first != second
    assert len(killer.processes) / 2 < AT_ONCE, "the host, directory, snapshot store, and a few for short tasks"
    for trial in result.trials:
        assert [report.step for report in trial.reports] == list(range(EVERY, STEPS + 1, EVERY))

"""A driver that is killed or interrupted loses nothing: `resume` ends with the same records everywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from support.shell import finished, num_reports, start, wait_for

from loraxs_search.records.trial import TrialState
from loraxs_search.registry.evidence import ScoredRows
from loraxs_search.registry.manifest import verify
from loraxs_search.studies.folder import StudyFolder, studies_root

# Each is a search or two from start to end; test_search_grown.py kills a driver, too.
pytestmark = [pytest.mark.slow, pytest.mark.long(part="faults"), pytest.mark.timeout(600)]
SLOWER = ("--set", "search.trials=5", "--set", "search.max_steps=60", "--set", "search.report_every=15")

# The command line, whose driver dies as soon as a trial is stopped: its report is written, its end is not.
DIES_AT_A_STOP = """
import os, sys
from loraxs_search.cli._main import main
from loraxs_search.log.study_log import StudyLog

append = StudyLog.append
StudyLog.append = lambda self, event: (
    os._exit(9) if getattr(event, "state", "") == "PRUNED" else append(self, event)
)
sys.exit(main())
"""


def test_a_search_loses_its_hosts_and_its_driver_is_terminated_and_loses_nothing(
    in_search_home, tiny_space, agree, descendants
):
    """First its hosts are killed, then the driver, then the next one gets SIGTERM."""
    name, options = "killed", [*SLOWER, "--set", "promotion.seeds=0"]
    options += ["--set", "search.checkpoint=best", "--set", "search.metric=f1"]
    with start(in_search_home, "launch", str(tiny_space), "--name", name, *options) as driver:
        wait_for(driver, lambda: StudyFolder.exists(name) and num_reports(name) >= 2)
        for pid in descendants(driver.pid, "HostActor"):
            os.kill(pid, signal.SIGKILL)
        wait_for(driver, lambda: num_reports(name) >= 6)
        driver.kill()
    before = StudyFolder.open(name).journal().records
    reported = num_reports(name)
    with start(in_search_home, "resume", name) as driver:
        wait_for(driver, lambda: num_reports(name) > reported)
        driver.send_signal(signal.SIGTERM)
        _, talk = driver.communicate(timeout=120)
    assert driver.returncode == 130, talk
    assert f"loraxs-search resume {name}" in talk
    assert "Traceback" not in talk
    assert "Stack trace" not in talk
    out, _ = finished(in_search_home, "resume", name)
    assert "COMPLETE" in out
    agree(name, 5)

    folder = StudyFolder.open(name)
    after = folder.journal().records
    for trial_id, record in before.items():
        assert after[trial_id].reports[: len(record.reports)] == record.reports
        assert after[trial_id].params == record.params
    assert "FAIL" not in {record.state.value for record in after.values()}
    # The state of each trial's best report is its adapter, whoever trained it to there.
    for record in (record for record in after.values() if record.state is TrialState.COMPLETE):
        best = max(record.reports, key=lambda report: (report.metrics["f1"], -report.step))
        assert verify(folder.adapter_path(record.trial_id)).kept_step == best.step
    candidates = folder.candidates()
    assert candidates
    assert all(candidate.kept_step is not None for candidate in candidates)


def test_a_trial_that_was_stopped_as_the_driver_died_trains_no_further(in_search_home, tiny_space, agree):
    launch = ["launch", str(tiny_space), "--name", "died-at-a-stop", *SLOWER]
    driver = subprocess.run(
        [sys.executable, "-c", DIES_AT_A_STOP, *launch], capture_output=True, text=True, check=False
    )
    assert driver.returncode == 9, driver.stderr
    before = StudyFolder.open("died-at-a-stop").journal()
    stopped = before.reports[-1]
    assert before.records[stopped.trial_id].state is TrialState.RUNNING
    finished(in_search_home, "resume", "died-at-a-stop")
    agree("died-at-a-stop", 5)
    after = StudyFolder.open("died-at-a-stop").journal().records[stopped.trial_id]
    assert (after.state, after.reports[-1]) == (TrialState.PRUNED, stopped)
    assert f"step {stopped.step}" in after.reason


def test_kill_9_at_the_end_of_a_search_redoes_and_doubles_nothing(in_search_home, tiny_space, agree):
    """Once while refits train, and once while adapters are written."""
    name, wanted = "unconfirmed", ("--set", "promotion.seeds=3")
    folder = studies_root() / name

    def done(*patterns: str) -> dict[str, tuple[bytes, int]]:
        found = sorted(path for pattern in patterns for path in folder.glob(pattern))
        return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}

    with start(in_search_home, "launch", str(tiny_space), "--name", name, *SLOWER, *wanted) as driver:
        wait_for(driver, lambda: len(done("confirmed/*.refit.json")) >= 2)
        driver.kill()
    before = done("confirmed/*")
    assert StudyFolder.open(name).candidates() is None
    with start(in_search_home, "resume", name) as driver:
        wait_for(driver, lambda: bool(done("adapters/[0-9]*/manifest.json")))
        driver.kill()
    before |= done("confirmed/*", "adapters/[0-9]*/manifest.json")
    finished(in_search_home, "resume", name)
    agree(name, 5)
    after = done("confirmed/*", "adapters/[0-9]*/manifest.json")
    assert {file: after[file] for file in before} == before, "what was done is left alone"
    candidates = StudyFolder.open(name).candidates()
    assert candidates
    refits = {f"confirmed/{c.trial_id}.refit.json" for c in candidates if "." in c.trial_id}
    assert {file for file in after if file.endswith(".refit.json")} == refits
    assert all(len({refit.seed for refit in candidate.refits}) == 3 for candidate in candidates)
    (finalist,) = (candidate for candidate in candidates if candidate.test_metrics)
    rows = ScoredRows.from_bytes(StudyFolder.open(name).confirmed.rows_path(finalist.trial_id).read_bytes())
    assert float((rows.predictions == rows.labels).mean()) == pytest.approx(finalist.test_metrics["accuracy"])

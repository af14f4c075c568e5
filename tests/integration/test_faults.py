"""Faults, each for real: one in a world of its own, and five minutes of chaos, whose judge catches what it is for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from faults import chaos, nodes, stores
from faults.arena import missing_means
from faults.history import History, Op, violations
from faults.world import World

from loraxs_search.records.trial import TrialState
from loraxs_search.studies.folder import StudyFolder

pytestmark = [
    pytest.mark.long(part="faults"),
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]


@pytest.mark.timeout(400)
def test_a_worker_whose_disk_is_full_ends_the_search_and_with_room_again_it_goes_on(tiny_base, monkeypatch):
    folder = Path(tempfile.mkdtemp(prefix="lx-"))  # a short path, since Ray's sockets below have long names
    if reason := stores.no_mounts(folder):
        pytest.skip(reason)
    (home := folder / "home").mkdir()
    monkeypatch.setenv("LORAXS_HOME", str(home))
    world, two = World(folder, home, base=str(tiny_base)), [nodes.Node(), nodes.Node()]
    with stores.disk(folder / "small", 400) as disk, nodes.ray_cluster(two, {1: disk.path / "home"}) as cluster:
        world.env |= cluster.env
        disk.fill()
        options = ("full", "--address", cluster.address)
        code, talk = world.end(world.launch(*options))
        assert (code, "No space left" in talk or "is full" in talk) == (1, True), talk
        disk.free()
        world.finish(world.start("resume", *options) if StudyFolder.exists("full") else world.launch(*options))
    trials = StudyFolder.open("full").journal().records.values()
    failed = [trial.reason for trial in trials if trial.state is TrialState.FAIL]
    assert (failed, world.losses()) == ([], []), "no trial is blamed"
    shutil.rmtree(folder)


def test_the_judge_blames_what_may_not_be_and_what_nobody_has_seen():
    def champion(began: float, version: int) -> Op:
        return Op("champion", began, began + 1, {"version": version, "number": version})

    digests = {1: "aaa", 2: "bbb"}
    promotions = [
        Op("promote", at, at + 2, {"code": 0, "said": "", "version": version}) for at, version in ((0, 1), (4, 2))
    ]
    said = violations(History([*promotions, champion(3, 1), champion(8, 1)]), digests)
    assert any("version 1 is the champion where [2] may be" in line for line in said)
    assert {"no pull has an answer", "no lease has an answer"} <= {*said}
    assert not any("version" in line for line in violations(History([*promotions, champion(3, 1)]), digests))


@pytest.mark.timeout(1200)
def test_five_minutes_of_chaos_break_no_rule(tmp_path):
    if reason := missing_means(tmp_path):
        pytest.skip(reason)
    command = [sys.executable, chaos.__file__, "--minutes", "5", "--history", str(tmp_path / "history")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

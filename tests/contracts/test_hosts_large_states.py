"""States too large to travel: they stay on their node, and a node that is lost costs steps, not the trial."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.spaces import SPACE

from loraxs_search.home import home
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.trial import Hyperparameters, TrialReport, TrialSpec
from loraxs_search.search_space.load import parse_space
from loraxs_search.search_space.space import Space
from loraxs_search.studies.snapshots import read_reports
from loraxs_search.trial.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("in_warm_home")


@pytest.fixture(scope="module")
def space(tiny_base):
    text = SPACE.format(task="large", base=tiny_base, trials=1, steps=8, every=2, promotion="{}")
    return parse_space(text, source="large.yaml", folder=Path("/"))


@pytest.fixture
def make(space, monkeypatch, tmp_path, in_warm_home):
    """Make hosts whose states travel up to so many bytes, each on a node that has states of its own."""
    made: list[TrialHost] = []

    def host(max_state_bytes: int) -> TrialHost:
        node = tmp_path / f"node-{len(made)}"
        node.mkdir()
        for shared in ("base_models", "datasets", "factors"):
            (in_warm_home / shared).mkdir(exist_ok=True)
            (node / shared).symlink_to(in_warm_home / shared)
        monkeypatch.setenv("LORAXS_HOME", str(node))
        options = {"precision": "float32", "max_state_bytes": max_state_bytes}
        made.append(TrialHost(space.base_model, space.task, slots=2, **options))
        return made[-1]

    yield host
    for each in made:
        each.close()


def spec_of(host: TrialHost, space: Space, **changes: Any) -> TrialSpec:
    names = tuple(module.name for module in host.info(space.task).modules)
    values: dict[str, Any] = {"rank": 2, "target_modules": names[:4], "batch_size": 8, "max_steps": 8}
    rates = {"learning_rate": 1e-2, "head_learning_rate": 1e-2, "init_std": 1e-2, "seed": 5}
    return TrialSpec("1", {}, Hyperparameters(**{**values, **rates, **changes}))


def scores(report: TrialReport) -> TrialReport:
    """Return a report without what depends on the clock."""
    return replace(report, device_s=0.0, scoring_s=0.0, peers={})


def close(actual: TrialReport, expected: TrialReport) -> bool:
    """Whether two reports are of the same numbers, up to the order of a sum."""
    same = scores(actual) == replace(scores(expected), metrics=actual.metrics, train_loss=actual.train_loss)
    numbers = {**actual.metrics, "train loss": actual.train_loss}
    return same and numbers == pytest.approx({**expected.metrics, "train loss": expected.train_loss}, rel=1e-4)


def test_a_large_state_stays_and_its_trial_goes_on_from_it(make, space, monkeypatch):
    travels = make(1 << 30)
    spec = spec_of(travels, space)
    _, state = travels.advance(spec, 4, None, space.task)
    expected, whole = travels.advance(spec, 8, state, space.task)
    stays = make(0)
    first, reference = stays.advance(spec, 4, None, space.task)
    assert len(reference) < 2000 < len(state)
    assert not Snapshot.from_bytes(reference).parameters and read_reports(reference) == (first,)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 9 * 86400)  # the disk is another machine's, by its clock
    stays.advance(replace(spec, trial_id="2"), 2, None, space.task)  # whatever else the host does in between
    report, last = stays.advance(spec, 8, reference, space.task)
    assert close(report, expected) and report.retrained_steps == 0
    assert [each.step for each in read_reports(last)] == [4, 8]
    one, other = (host.confirm(spec, state, space.task) for host, state in ((stays, last), (travels, whole)))
    assert one.files.keys() == other.files.keys()
    assert torch.allclose(torch.tensor(one.probe.logits), torch.tensor(other.probe.logits), atol=1e-4)
    assert len(list((home() / "states").glob("*"))) == 3, "two of the trial, one of the other"


def test_a_state_of_a_time_to_come_makes_no_other_old(make, space):
    """A clock was ahead for a while, and is right again."""
    host = make(0)
    spec = spec_of(host, space)
    _, reference = host.advance(spec, 2, None, space.task)
    (own,) = (home() / "states").glob("*")
    host.advance(replace(spec, trial_id="2"), 2, None, space.task)
    (other,) = set((home() / "states").glob("*")) - {own}
    ahead = time.time() + 30 * 86400
    os.utime(other, (ahead, ahead))
    host.advance(replace(spec, trial_id="3"), 2, None, space.task)
    report, _ = host.advance(spec, 4, reference, space.task)
    assert report.retrained_steps == 0


def test_a_lost_node_restarts_the_trial_and_its_reports_say_so(make, space):
    lost = make(0)
    spec = spec_of(lost, space)
    _, reference = lost.advance(spec, 4, None, space.task)
    expected, last = lost.advance(spec, 8, reference, space.task)
    elsewhere = make(0)
    report, state = elsewhere.advance(spec, 8, reference, space.task)
    assert close(report, replace(expected, retrained_steps=4))
    assert [(each.step, each.retrained_steps) for each in read_reports(state)] == [
        (4, 0),
        (8, 4),
    ]
    again = make(0)
    answers = [host.answer(spec, last, range(20), space.task) for host in (again, elsewhere)]
    assert answers[0].predictions == answers[1].predictions
    assert answers[0].loss == pytest.approx(answers[1].loss, rel=1e-4)


def test_of_a_method_without_an_adapter_nothing_stays_in_the_end(make, space):
    host = make(1 << 16)
    spec = spec_of(host, space, method="full", rank=0, learning_rate=1e-4)
    first, state = host.advance(spec, 4, None, space.task)
    assert len(state) < 1 << 16 < first.size.stored_bytes and len(list((home() / "states").glob("*"))) == 1
    report, state = host.advance(spec, 8, state, space.task)
    assert report.size == first.size and not list((home() / "states").glob("*"))
    travels = make(1 << 30)
    _, whole = travels.advance(spec, 4, None, space.task)
    assert close(report, travels.advance(spec, 8, whole, space.task)[0])

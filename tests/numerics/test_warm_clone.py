"""A warm clone goes on with its source's state: with the same params it is the trial that was never interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loraxs_search.packing import PackedHost, TrialHost
from loraxs_search.records import TrialSpec
from loraxs_search.search.hosts.refits import RefitPiece, refit_spec
from loraxs_search.search_space import load_space
from loraxs_search.studies import StudyFolder
from loraxs_search.studies.snapshots import handed_on
from loraxs_search.trial import Snapshot

STEPS, AT = 12, 4


@pytest.fixture(params=[None, 4], ids=["lone", "packed"])
def host(request: pytest.FixtureRequest, tiny_space: Path, in_warm_home: Path) -> Iterator[Any]:
    space = load_space(str(tiny_space))
    if request.param is None:
        made: Any = TrialHost(space.base_model, space.task, precision="float32")
    else:
        made = PackedHost(space.base_model, space.task, slots=request.param, precision="float32", device="cpu")
    yield made
    made.close()


def spec(host: Any, tiny_space: Path, trial_id: str, **changes: object) -> TrialSpec:
    space = load_space(str(tiny_space))
    params = {"rank": 4, "target_modules": "all-linear", "learning_rate": 3e-2, "head_learning_rate": 1e-2}
    hyper = space.hyperparameters({**params, "batch_size": 8}, host.info(space.task).modules, seed=11)
    return TrialSpec(trial_id, params, replace(hyper, max_steps=STEPS, weight_decay=0.01, **changes))


def assert_same(a: Snapshot, b: Snapshot, *, since: int = 0) -> None:
    assert a.step == b.step
    assert a.num_tokens == b.num_tokens
    for name, value in a.parameters.items():
        torch.testing.assert_close(value, b.parameters[name], rtol=0, atol=1e-6)
    for name, value in a.moments.items():
        torch.testing.assert_close(value, b.moments[name], rtol=0, atol=1e-6)
    metrics = [{r.step: r.metrics for r in one.reports if r.step > since} for one in (a, b)]
    assert metrics[0].keys() == metrics[1].keys()
    for step, values in metrics[0].items():
        assert values == pytest.approx(metrics[1][step], abs=1e-6)


def test_unchanged_it_is_the_uninterrupted_trial(host: Any, tiny_space: Path) -> None:
    source, clone, task = (*(spec(host, tiny_space, name) for name in ("1", "2")), load_space(str(tiny_space)).task)
    _, at = host.advance(source, AT, None, task)
    _, whole = host.advance(source, STEPS, at, task)
    first = handed_on(at, clone.trial_id)
    report, cloned = host.advance(clone, STEPS, first, task)
    assert_same(Snapshot.from_bytes(whole), Snapshot.from_bytes(cloned), since=AT)
    reports = Snapshot.from_bytes(cloned).reports
    assert [(r.trial_id, r.step) for r in reports] == [("2", AT), ("2", STEPS)]
    assert report.device_s < Snapshot.from_bytes(whole).device_s + 1.0
    assert Snapshot.from_bytes(first).device_s == 0.0


def test_it_trains_by_its_own_params_from_there(host: Any, tiny_space: Path) -> None:
    source, task = spec(host, tiny_space, "1"), load_space(str(tiny_space)).task
    other = spec(host, tiny_space, "2", learning_rate=3e-3)
    _, at = host.advance(source, AT, None, task)
    _, whole = host.advance(source, STEPS, at, task)
    _, cloned = host.advance(other, STEPS, handed_on(at, "2"), task)
    a, b = Snapshot.from_bytes(whole), Snapshot.from_bytes(cloned)
    assert any(not torch.allclose(value, b.parameters[name], atol=1e-4) for name, value in a.parameters.items())


class OnHost:
    """What a refit asks, answered by a host of this process."""

    def __init__(self, host: Any) -> None:
        self._host, self.asked = host, list[tuple[float, int]]()

    def advance(self, spec: TrialSpec, until: int, snapshot: bytes | None, task: Any) -> Any:
        self.asked.append((spec.hyperparameters.learning_rate, until))
        return self._host.advance(spec, until, snapshot, task)


def test_a_refit_repeats_the_whole_lineage_from_a_fresh_seed(
    host: Any, tiny_space: Path, make_folder: StudyFolder
) -> None:
    source, task = spec(host, tiny_space, "1"), load_space(str(tiny_space)).task
    clone = spec(host, tiny_space, "2", learning_rate=3e-3)
    earlier = replace(refit_spec(source, 1), trial_id="2.1")
    piece = RefitPiece(refit_spec(clone, 1), task, 3, make_folder, ((earlier, AT),))
    client, goes_on = OnHost(host), True
    while goes_on:
        goes_on = piece.take(piece.ask(client))  # type: ignore[arg-type]
    assert client.asked == [(3e-2, 3), (3e-2, AT), (3e-3, 7), (3e-3, 10), (3e-3, STEPS)]
    refit = Snapshot.from_bytes(make_folder.read_snapshot("2.1") or b"")
    _, at = host.advance(replace(earlier, trial_id="3"), AT, None, task)
    _, expected = host.advance(replace(refit_spec(clone, 1), trial_id="4"), STEPS, handed_on(at, "4"), task)
    assert_same(refit, Snapshot.from_bytes(expected), since=10)


@pytest.fixture
def make_folder(in_warm_home: Path) -> Iterator[StudyFolder]:
    from support.studies import study

    from loraxs_search.records import SearchPlan

    made = study("refits-of-clones", search=SearchPlan(max_steps=STEPS))
    yield made
    import shutil

    shutil.rmtree(made.path)

"""A study's linear probe is fitted once, and no search ends for want of it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from support.studies import study

from loraxs_search.assets import NOTHING, PROBE
from loraxs_search.errors import ClusterError, HomeError, SearchInterruptedError
from loraxs_search.records.host import LinearProbe
from loraxs_search.search.driver.session import StudyProbe
from loraxs_search.search.hosts.answers import HOST_LOST
from loraxs_search.search_space.space import Space

FITTED = LinearProbe(b"weights", 90, 0.5)


class HostStub:
    """A pool with one host, which answers with what it is given: a probe, or an error that is raised."""

    def __init__(self, *answers: LinearProbe | Exception) -> None:
        self.answers, self.num_asked = list(answers), 0
        self.linear_probe = SimpleNamespace(remote=self._linear_probe)

    def _linear_probe(self, task: object) -> LinearProbe | Exception:
        self.num_asked += 1
        return self.answers.pop(0)

    def host(self) -> HostStub:
        return self

    def ask(self, verb: Any, check_stop: Any) -> LinearProbe:
        return get(verb(self), check_stop)


def get(answer: LinearProbe | Exception, check_stop: Any) -> LinearProbe:
    check_stop()
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture
def make(fresh_home, monkeypatch):
    monkeypatch.setattr("loraxs_search.search.driver.session.await_answer", get)
    said: list[str] = []

    def probe(
        host: HostStub, inits: tuple[str, ...] = ("probe",), stop: Callable[[], None] = lambda: None
    ) -> StudyProbe:
        folder = probe.folder  # type: ignore[attr-defined]
        space: Space = SimpleNamespace(task=folder.info.task, head_inits=lambda: set(inits))  # type: ignore[assignment]
        actors: Any = SimpleNamespace(pool=host, check_stop=stop)
        return StudyProbe(folder, actors, space, said.append)

    probe.folder, probe.said = study("s"), said  # type: ignore[attr-defined]
    (probe.folder.path / "space.json").write_text("{}")  # type: ignore[attr-defined]
    return probe


def test_the_study_keeps_it_and_a_resumed_one_asks_no_host(make):
    host = HostStub(FITTED)
    probe = make(host)
    digest = probe.digest()
    assert probe.digest() == digest == make.folder.assets()[PROBE]
    assert make.folder.read_asset(digest) == b"weights"
    resumed = HostStub()
    assert make(resumed).digest() == digest
    assert (host.num_asked, resumed.num_asked) == (1, 0)
    assert len(make.said) == 1, "a phase of the search"


def test_a_base_without_one_is_said_once(make, caplog):
    probe = make(HostStub(LinearProbe(reason="no numbers")))
    assert [probe.digest(), probe.digest()] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [
        "heads start at random, without a linear probe: no numbers"
    ]
    assert make.folder.assets() == {PROBE: NOTHING}


def test_trials_of_a_resumed_study_start_as_the_first_ones_did(make):
    """Refits would be of another recipe otherwise."""
    assert make(HostStub(LinearProbe(reason="no numbers"))).digest() is None
    resumed = HostStub(FITTED)
    assert make(resumed).digest() is None
    assert resumed.num_asked == 0


@pytest.mark.parametrize("kind", [ClusterError, HomeError])
def test_a_node_that_is_not_fit_ends_the_search(make, kind):
    with pytest.raises(kind):
        make(HostStub(kind("No space left."))).digest()
    assert not make.folder.assets()


@pytest.mark.parametrize("answers", [[FITTED], [HOST_LOST[0](), FITTED]])
def test_who_waits_for_it_hears_that_the_search_is_stopped_and_a_resumed_one_fits_it_anew(make, answers):
    looks = list[None]()

    def stop() -> None:
        looks.append(None)
        if len(looks) == len(answers):
            raise SearchInterruptedError("stopped")

    with pytest.raises(SearchInterruptedError):
        make(HostStub(*answers), stop=stop).digest()
    assert not make.folder.assets()
    assert make(HostStub(FITTED)).digest() is not None


def test_a_lost_host_is_replaced(make):
    assert make(HostStub(HOST_LOST[0](), FITTED)).digest() is not None


@pytest.mark.parametrize("errors", [[HOST_LOST[0](), HOST_LOST[0]()]])
def test_where_none_can_be_had_heads_start_at_random(make, errors, caplog):
    assert make(HostStub(*errors)).digest() is None
    assert "heads start at random" in caplog.text


def test_a_space_whose_heads_start_at_random_asks_only_for_a_trial_that_somebody_adds(make):
    host = HostStub(FITTED)
    probe = make(host, ("random",))
    assert host.num_asked == 0
    assert probe.digest() is not None

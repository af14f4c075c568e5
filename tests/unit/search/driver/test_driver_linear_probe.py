"""A study's linear probe is fitted once, and no search ends for want of it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from support.studies import study

from loraxs_search.assets import NOTHING, PROBE
from loraxs_search.errors import ClusterError, HomeError, SearchInterruptedError
from loraxs_search.records.adapter import LinearProbe
from loraxs_search.search.driver.session import begin_linear_probe
from loraxs_search.search.hosts.answers import HOST_LOST

FITTED = LinearProbe(b"weights", 90, 0.5)


class HostStub:
    """A pool with one host, which answers with what it is given: a probe, or an error that is raised."""

    def __init__(self, *answers: LinearProbe | Exception) -> None:
        self.answers, self.num_asked = list(answers), 0
        self.serve = SimpleNamespace(remote=lambda work, *_: work(self))

    def linear_probe(self, task: object) -> LinearProbe | Exception:
        self.num_asked += 1
        return self.answers.pop(0)

    def host(self) -> HostStub:
        return self

    def ask(self, verb: Any, check_stop: Any, begun: Any) -> LinearProbe:
        check_stop()
        answer = begun or verb(self)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def folder(fresh_home):
    made = study("s")
    (made.path / "space.json").write_text("{}")
    return made


@pytest.fixture
def make(folder):
    """Begin the probe of that study on a host; what it says is not looked at unless given."""

    def probe(
        host: HostStub, *, init: str = "probe", stop: Callable[[], None] = bool, said: Any = bool
    ) -> Callable[[], str | None]:
        space: Any = SimpleNamespace(task=folder.info.task, methods=("lora-xs",), possible_values=lambda *_: (init,))
        actors: Any = SimpleNamespace(pool=host, check_stop=stop)
        return begin_linear_probe(folder, actors, space, said)

    return probe


def test_the_study_keeps_it_and_a_resumed_one_asks_no_host(make, folder):
    host, said = HostStub(FITTED), list[str]()
    probe = make(host, said=said.append)
    digest = probe()
    assert probe() == digest == folder.assets()[PROBE]
    assert folder.read_asset(digest) == b"weights"
    resumed = HostStub()
    assert make(resumed)() == digest
    assert (host.num_asked, resumed.num_asked) == (1, 0)
    assert len(said) == 1, "a phase of the search"


def test_a_base_without_one_is_said_once_and_trials_of_a_resumed_study_start_as_the_first_ones_did(
    make, folder, caplog
):
    """Refits would be of another recipe otherwise."""
    probe = make(HostStub(LinearProbe(reason="no numbers")))
    assert [probe(), probe()] == [None, None]
    (said,) = caplog.records
    assert "no numbers" in said.getMessage()
    assert folder.assets() == {PROBE: NOTHING}
    resumed = HostStub(FITTED)
    assert make(resumed)() is None
    assert resumed.num_asked == 0


@pytest.mark.parametrize("kind", [ClusterError, HomeError])
def test_a_node_that_is_not_fit_ends_the_search_and_hosts_that_are_lost_do_not(make, folder, kind):
    with pytest.raises(kind):
        make(HostStub(kind("No space left.")))()
    assert not folder.assets()
    assert make(HostStub(HOST_LOST[0]()))() is None, "heads start at random"


def test_who_waits_for_it_hears_that_the_search_is_stopped_and_a_resumed_one_fits_it_anew(make, folder):
    def stop() -> None:
        raise SearchInterruptedError("stopped")

    with pytest.raises(SearchInterruptedError):
        make(HostStub(FITTED), stop=stop)()
    assert not folder.assets()
    assert make(HostStub(FITTED))() is not None


def test_a_space_whose_heads_start_at_random_asks_only_for_a_trial_that_somebody_adds(make):
    host = HostStub(FITTED)
    probe = make(host, init="random")
    assert host.num_asked == 0
    assert probe() is not None

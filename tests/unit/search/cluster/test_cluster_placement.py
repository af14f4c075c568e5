"""What a trial asks for, how many fit, and where the one host for all is: judged over nodes that come and go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.search.cluster import placement
from loraxs_search.search.cluster.placement import Node, SlotCounter, Slots, share_out

HEAD = Node("head", 0, address="head")
SMALL, LARGE = Node("small", 2), Node("large", 8)
GPUS = Node("gpus", 16, 4)


def test_slots_are_those_of_gpus_or_of_the_smallest_node_and_known_without_one():
    assert share_out([HEAD, SMALL, GPUS], 2, "auto") == Slots({"CPU": 0.0, "GPU": 0.5}, {"gpus": 8})
    assert share_out([SMALL, GPUS], 1, "cpu").resources == {"CPU": 2.0}
    assert share_out([HEAD, SMALL, LARGE], 2, "auto") == Slots({"CPU": 1.0}, {"small": 2, "large": 8})
    assert share_out([HEAD], 4, "gpu") == Slots({"CPU": 0.0, "GPU": 0.25})
    assert share_out([HEAD], 4, "cpu") == Slots({"CPU": 0.25})


@given(st.integers(1, 64), st.integers(1, 8))
def test_as_many_shares_fit_as_ray_counts_them(pack_size, cpus):
    """Ray rounds a share to ten-thousandths; six times 0.1667 would be more than one GPU."""
    for nodes, name, whole in (([Node("a", 1, 1)], "GPU", 1), ([Node("a", cpus)], "CPU", cpus)):
        share = share_out(nodes, pack_size, "auto").resources[name]
        assert round(share * 10_000) * pack_size <= whole * 10_000


def test_trials_without_a_slot_say_once_what_they_wait_for_and_ask_anew_where_their_nodes_have_left(caplog):
    nodes, now = [LARGE], [0.0]
    counter = SlotCounter(lambda: nodes, 2, "cpu", concurrent=None, clock=lambda: now[0])
    asked = counter.slots.resources
    assert [counter.have_left(asked), counter.have_left(asked), len(caplog.messages)] == [False, False, 1]
    assert "4 CPU" in caplog.messages[0]
    assert "another search" in caplog.messages[0]
    now[0] += placement.SAY_EVERY_S
    assert not counter.have_left(asked, True)
    assert len(caplog.messages) == 1, "it waits for another trial of the search"
    nodes[:] = [HEAD]
    assert [counter.have_left(asked), counter.have_left(asked), len(caplog.messages)] == [False, False, 2]
    assert "a node with 4 CPU to join the cluster; now head has 0 CPU and 0 GPU" in caplog.messages[1]
    nodes[:], now[0] = [HEAD, SMALL], now[0] + placement.COUNT_EVERY_S
    assert counter.have_left(asked)
    assert len(caplog.messages) == 2
    now[0] += placement.SAY_EVERY_S
    assert not counter.have_left(asked, True), "the trial that has a slot there is not disturbed"
    assert "a node with 4 CPU to join" in caplog.messages[2]
    assert not counter.have_left(counter.slots.resources), "that is there, and taken"


def test_slots_are_counted_anew_every_few_seconds():
    now, nodes = [0.0], [SMALL]
    counter = SlotCounter(lambda: nodes, 1, "auto", concurrent=None, clock=lambda: now[0])
    assert counter.max_concurrent == 1
    nodes.append(LARGE)
    assert counter.max_concurrent == 1, "Ray is not asked at every step of the loop"
    now[0] = placement.COUNT_EVERY_S
    assert counter.max_concurrent == 5
    nodes.clear()
    now[0] *= 2
    assert counter.max_concurrent == 1, "one trial waits, for a node to come"


def test_the_number_asked_for_stands_whatever_there_is_and_studies_share_the_slots():
    assert SlotCounter(list, 1, "gpu", concurrent=6).max_concurrent == 6
    assert SlotCounter(lambda: [LARGE, SMALL], 1, "auto", concurrent=2).max_concurrent == 2
    assert SlotCounter(lambda: [GPUS], 2, "auto", concurrent=None, num_studies=3).max_concurrent == 2


def size(trials: int, *, asked: int | str = "auto", fits: int = 100, fills: int = 8, devices: int = 1) -> int:
    return placement.choose_pack_size(asked, fits=fits, fills=fills, num_trials=trials, num_devices=devices).size


def test_auto_fills_each_device_in_even_rounds_and_what_was_asked_for_stands_unless_memory_holds_less():
    assert [size(trials) for trials in (8, 24, 12, 3)] == [8, 8, 6, 3]
    assert (size(100, fits=5), size(12, devices=4)) == (5, 3)
    assert size(16, devices=0) == 8, "all nodes are still to come"
    assert (size(2, asked=4, fits=9), size(2, asked=64, fits=9)) == (4, 9)


@given(st.integers(1, 500), st.integers(1, 64), st.integers(1, 64), st.integers(1, 8))
def test_auto_takes_no_more_rounds_than_full_devices_would(trials, fits, fills, devices):
    chosen, full = size(trials, fits=fits, fills=fills, devices=devices), min(fits, fills)
    assert 1 <= chosen <= full
    assert -(-trials // (chosen * devices)) == -(-trials // (full * devices))

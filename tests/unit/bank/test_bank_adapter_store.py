"""Names, limits and use: what is evicted is what was used longest ago."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.bank.adapter_store import AdapterStore, Layout
from loraxs_search.errors import UsageError
from loraxs_search.records.task import DataSource, Task
from loraxs_search.tasks.kinds import classifier

CPU = torch.device("cpu")
TASK = Task("t", "sequence-classification", DataSource(), "text", "label", "accuracy", "maximize", ("accuracy",))


def layout(rank: int) -> Layout:
    return Layout((("m", rank, ("exact", "top", 8)),), (), classifier(2), ())


def put(store: AdapterStore, name: str, rank: int = 2) -> None:
    value = float(sum(map(ord, name)))
    store.free_space(layout(rank), [name])
    store.put(layout(rank), [name], torch.full((1, rank * rank), value), TASK)


def value(store: AdapterStore, name: str) -> float:
    (part,) = store.take([name])
    assert bool((part.vectors == part.vectors[0, 0]).all())
    return float(part.vectors[0, 0])


NAMES = [f"{letter}{rank}" for letter in "abcdef" for rank in (1, 2, 3)]


@given(st.lists(st.tuples(st.sampled_from(["put", "drop", "use"]), st.sampled_from(NAMES)), max_size=60))
def test_a_store_is_a_dictionary_that_forgets_the_least_recently_used(steps):
    store, expected = AdapterStore(100, CPU), {}
    for step, name in steps:
        size = 4 * int(name[1]) ** 2
        if step == "put":
            expected.pop(name, None)
            while sum(4 * int(n[1]) ** 2 for n in expected) + size > 100:
                expected.pop(next(iter(expected)))
            expected[name] = float(sum(map(ord, name)))
            put(store, name, int(name[1]))
        elif name not in expected:
            with pytest.raises(UsageError, match="is none of"):
                store.drop(name) if step == "drop" else store.take([name])
        elif step == "drop":
            store.drop(name)
            expected.pop(name)
        else:
            assert value(store, name) == expected[name]
            expected[name] = expected.pop(name)
        assert store.names == list(expected)
        assert store.num_bytes == sum(4 * int(n[1]) ** 2 for n in expected) <= 100
        assert store.allocated_bytes <= store.num_bytes * 1.05 + 4
    for name, number in expected.items():
        assert value(store, name) == number


def test_rows_of_one_layout_go_together_and_bare_ones_last():
    store = AdapterStore(None, CPU)
    for name, rank in (("a", 2), ("b", 3), ("c", 2)):
        put(store, name, rank)
    parts = store.take(["a", None, "b", "c", "a", None, "b"])
    assert [part.rows for part in parts] == [(0, 3, 4), (2, 6), (1, 5)]
    assert [part.layout and part.layout.modules[0][1] for part in parts] == [2, 3, None]
    assert [len(part.vectors) for part in parts] == [3, 1, 0]  # "b" alone is there once


def test_what_can_never_fit_is_refused_and_nothing_is_lost():
    store = AdapterStore(40, CPU)
    put(store, "a", 3)
    with pytest.raises(UsageError, match="100 bytes of 40"):
        put(store, "b", 5)
    assert store.names == ["a"]


def test_the_nearest_names_are_listed_unless_there_are_too_many(monkeypatch):
    store = AdapterStore(None, CPU)
    put(store, "movie-reviews")
    with pytest.raises(UsageError, match=r"'movie-review'.* movie-reviews") as caught:
        store.take(["movie-review"])
    assert "load it first" in caught.value.hint
    monkeypatch.setattr("loraxs_search.bank.adapter_store._MANY", 0)
    with pytest.raises(UsageError, match=r"none of 1\."):
        store.take(["movie-review"])


def test_what_moved_into_a_gap_is_known_by_its_name_there():
    store = AdapterStore(None, CPU)
    for name in "abcd":
        put(store, name)
    for name in "bca":  # "d" moves to where "b" was, and then to where "a" was
        store.drop(name)
    assert (store.names, value(store, "d")) == (["d"], float(ord("d")))

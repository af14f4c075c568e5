from __future__ import annotations

import pytest

from loraxs_search.errors import RegistryError
from loraxs_search.records import PromotionRule
from loraxs_search.registry import Registry, _versions, reader
from loraxs_search.registry._versions import SUMMARY as TAG
from loraxs_search.tracking.store import connect


@pytest.fixture
def client(store_uri):
    return connect(store_uri)


class _Asked:
    """Asks a real client, and keeps how."""

    def __init__(self, client) -> None:
        self._ask = reader.asking(client)
        self.calls: list[tuple[bool, int]] = []

    def __call__(self, only, size, token):
        self.calls.append((only is not None, size))
        return self._ask(only, size, token)


def fill(client, ours: int, others: int) -> None:
    for number in range(ours):
        _versions.ensure_model(client, f"task-{number:02d}")
    for number in range(others):
        client.create_registered_model(f"a-model-of-someone-{number:02d}")


@pytest.mark.parametrize("limit", [None, 1, 20, 25, 60])
def test_our_models_come_by_name_as_many_as_are_wanted(client, limit):
    fill(client, ours=25, others=5)
    asked = _Asked(client)
    expected = [f"task-{number:02d}" for number in range(25)][:limit]
    assert [model.name for model in reader.models(asked, limit)] == expected
    assert not any(filtered for filtered, _ in asked.calls), "the store is ours: it is read along its index"
    assert len(asked.calls) == 1, "a few others among ours cost no second page"


@pytest.mark.parametrize("limit", [None, 2])
def test_a_store_that_is_mostly_someone_elses_is_asked_for_ours(client, limit):
    fill(client, ours=3, others=23)
    asked = _Asked(client)
    assert [model.name for model in reader.models(asked, limit)] == ["task-00", "task-01", "task-02"][:limit]
    assert asked.calls == ([(False, 1000)] if limit is None else [(False, 22), (True, 22)])


def test_pages_follow_each_other(client, monkeypatch):
    monkeypatch.setattr(reader, "_MAX_PAGE", 10)
    fill(client, ours=25, others=3)
    asked = _Asked(client)
    assert [model.name for model in reader.models(asked)] == [f"task-{number:02d}" for number in range(25)]
    assert asked.calls == [(False, 10)] * 3


def test_a_task_without_a_line_is_read(store_uri, client, task, candidate, make_folder):
    registry = Registry(store_uri)
    registry.promote(
        PromotionRule(confidence=0, require="constant"), task, [candidate("t0", 0.8)], {"t0": make_folder("t0")}
    )
    (kept,) = registry.summaries()
    client.delete_registered_model_tag(task.name, TAG)  # as a promoter leaves it that knows no lines
    assert registry.summaries() == [kept]
    registry.promote(
        PromotionRule(confidence=0, require="constant"), task, [candidate("t1", 0.9)], {"t1": make_folder("t1")}
    )
    client.delete_registered_model_tag(task.name, TAG)
    client.set_registered_model_alias(task.name, "champion", "1")  # not the newest version
    assert registry.summaries() == [kept]


def test_an_unknown_task_names_the_nearest_of_many(store_uri, client):
    fill(client, ours=130, others=0)
    with pytest.raises(RegistryError, match=r"`task`.*: task-129, .*'task-1299'") as unknown:
        Registry(store_uri).resolve("task-1299")
    assert str(unknown.value).count("task-") < 230
    assert "loraxs-search ls" in str(unknown.value.hint)

"""Lists and files of a store: what is asked, and that no more of a file is written than it may have."""

from __future__ import annotations

import contextlib

import pytest
from mlflow import MlflowClient

from loraxs_search.errors import IntegrityError, RegistryUnreadableError
from loraxs_search.registry import store
from loraxs_search.registry.store import ADAPTER, KIND, Registry
from loraxs_search.tracking.store import connect

from .conftest import served

SOURCE, NAME = "mlflow-artifacts:/1/models/m/artifacts", "README.md"
CHUNK, MAX_CHUNKS = bytes(2**16), 2**9


def test_a_server_that_sends_without_end_is_cut_off(tmp_path):
    sent = []

    def endless(request):
        """Send chunk after chunk and never say how many, as long as somebody reads."""
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        with contextlib.suppress(OSError):
            while len(sent) < MAX_CHUNKS:
                request.wfile.write(b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK))
                sent.append(1)
            request.wfile.write(b"0\r\n\r\n")

    with (
        served(endless) as address,
        pytest.raises(IntegrityError, match=rf"{NAME} must have at most 100,000 bytes, but .*{address}"),
    ):
        Registry(address).fetch_file(SOURCE, NAME, tmp_path, 100_000)
    assert (tmp_path / NAME).stat().st_size <= 100_000
    assert len(sent) < MAX_CHUNKS


def test_what_mlflows_client_fetched_is_measured(store_uri, tmp_path):
    source = tmp_path / "artifacts"
    source.mkdir()
    (source / NAME).write_bytes(bytes(11))
    (tmp_path / "fetched").mkdir()
    with pytest.raises(IntegrityError, match=f"{NAME} must have at most 10 bytes, but 11 came from"):
        Registry(store_uri).fetch_file(str(source), NAME, tmp_path / "fetched", 10)
    assert Registry(store_uri).fetch_file(str(source), NAME, tmp_path / "fetched", 11).read_bytes() == bytes(11)


# ---- lists -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def client(store_uri):
    return connect(store_uri)


def fill(client: MlflowClient, ours: int, others: int) -> None:
    for number in range(ours):
        client.create_registered_model(f"task-{number:02d}", tags={KIND: ADAPTER})
    for number in range(others):
        client.create_registered_model(f"a-model-of-someone-{number:02d}")


def test_our_models_come_by_name_as_many_as_are_wanted_page_after_page(store_uri, client, monkeypatch):
    fill(client, ours=25, others=5)
    asked, search = list[int](), MlflowClient.search_registered_models

    def ask(client, only, size, *rest):
        asked.append(size)
        return search(client, only, size, *rest)

    monkeypatch.setattr(MlflowClient, "search_registered_models", ask)
    for limit in (None, 1, 25):
        found = [summary.task for summary in Registry(store_uri).summaries(limit)]
        assert found == [f"task-{number:02d}" for number in range(25)][:limit]
    assert len(asked) == 3, "a few others among ours cost no second page"
    monkeypatch.setattr(store, "_MAX_PAGE", 10)
    assert len(Registry(store_uri).summaries()) == 25
    assert asked[3:] == [10] * 3


def test_a_state_differs_once_a_name_moves_or_a_task_is_made_anew(store_uri, client):
    registry, tasks = Registry(store_uri), {f"t{n}" for n in range(10)}

    def make(task):
        client.create_registered_model(task, tags={KIND: ADAPTER})
        client.set_registered_model_alias(task, "champion", client.create_model_version(task, "file:///x").version)

    for task in sorted(tasks):
        make(task)
    client.create_model_version("t1", "file:///y")
    before = registry.states(tasks)
    assert before.keys() == tasks
    assert registry.states({"t1", "nobody"}) == {"t1": before["t1"]}  # few are asked one by one
    client.set_registered_model_alias("t1", "champion", "2")
    client.delete_registered_model("t2")
    make("t2")  # has version 1 again
    after = registry.states(tasks)
    assert {task for task in tasks if after[task] != before[task]} == {"t1", "t2"}


def test_a_registry_that_is_not_there_has_no_states(tmp_path):
    with pytest.raises(RegistryUnreadableError):
        Registry(f"sqlite:///{tmp_path}/none.db").states({"t"})

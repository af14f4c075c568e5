"""What says that a task's names may mean other adapters."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from loraxs_search.errors import RegistryUnreadableError
from loraxs_search.registry.names import ADAPTER, KIND
from loraxs_search.registry.reader import RegistryReader


def test_a_state_differs_once_a_name_moves_or_a_task_is_made_anew(store_uri):
    client, tasks = MlflowClient(tracking_uri=store_uri, registry_uri=store_uri), {f"t{n}" for n in range(10)}

    def make(task):
        client.create_registered_model(task, tags={KIND: ADAPTER})
        client.set_registered_model_alias(task, "champion", client.create_model_version(task, "file:///x").version)

    for task in sorted(tasks):
        make(task)
    client.create_model_version("t1", "file:///y")
    reader = RegistryReader(store_uri)
    before = reader.states(tasks)
    assert before.keys() == tasks
    assert reader.states({"t1", "nobody"}) == {"t1": before["t1"]}  # few are asked one by one
    client.set_registered_model_alias("t1", "champion", "2")
    client.delete_registered_model("t2")
    make("t2")  # has version 1 again
    after = reader.states(tasks)
    assert {task for task in tasks if after[task] != before[task]} == {"t1", "t2"}


def test_a_registry_that_is_not_there_has_no_states(tmp_path):
    with pytest.raises(RegistryUnreadableError):
        RegistryReader(f"sqlite:///{tmp_path}/none.db").states({"t"})

"""A node that joins a search late, with another version than the driver's: told, and no trial is trained there."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
from faults.nodes import Node, short_lived
from faults.world import World
from support.shell import wait_for

pytestmark = [pytest.mark.long(part="cluster"), pytest.mark.timeout(400)]


@pytest.fixture
def cluster(in_search_home):
    """A head and a worker."""
    with short_lived([Node(), Node()]) as made:
        yield made


def test_a_late_node_with_another_version_ends_the_search_and_resume_goes_on_without_it(
    cluster, in_search_home, tiny_space, tmp_path, agree
):
    world = World(tmp_path, in_search_home, env=cluster.env)
    plan = ("search.trials=5", "search.max_steps=300", "search.report_every=10", "search.scheduler=none")
    plan += ("search.pack_size=1",)  # a node that no trial needs is not looked at
    longer = [word for override in plan for word in ("--set", override)]
    search = world.launch("unlike", "--address", cluster.address, *longer, space=tiny_space)
    wait_for(search, (in_search_home / "studies" / "unlike").exists)
    other = tmp_path / "other" / "peft-0.21.99.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.21.99\n")
    late = cluster.join(PYTHONPATH=str(other.parent))
    code, talk = world.end(search)
    assert code == 1, talk
    told = rf"the driver's versions, but [\d.]+ has peft 0\.21\.99, the driver has {re.escape(version('peft'))}\."
    assert re.search(told, talk), talk
    assert "hint: install the same versions on every node" in talk

    late.kill()
    world.resume("unlike", "--address", cluster.address)
    agree("unlike", 5)

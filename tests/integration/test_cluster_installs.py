"""`--runtime-env` with `pip` or `uv`: Ray installs packages on real nodes of this machine, from a real index."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
from faults.nodes import Node, ray_cluster
from faults.world import World

from loraxs_search.studies.folder import StudyFolder

pytestmark = [pytest.mark.long(part="cluster"), pytest.mark.timeout(400)]
PACKAGE = "cowsay"  # small, pure Python, and nobody's dependency
Launch = Callable[..., tuple[int, str]]
SHORT = ("--set", "search.trials=2", "--set", "search.max_steps=4")


@pytest.fixture(scope="module")
def cluster(full_ray, tmp_path_factory):
    """A head and a worker."""
    homes = {number: tmp_path_factory.mktemp("node-home") for number in range(3)}
    with ray_cluster([Node(), Node()], homes, ray=full_ray) as made:
        yield made


@pytest.fixture
def launch(cluster, in_search_home, tiny_space, tmp_path):
    """Launch a search with a runtime environment; return its exit code and what it said."""

    def run(study: str, environment: str, *options: str) -> tuple[int, str]:
        file = tmp_path / "env.yaml"
        file.write_text(environment)
        world = World(tmp_path, in_search_home, env=cluster.env)
        options = ("--address", cluster.address, "--runtime-env", str(file), *(options or SHORT))
        return world.end(world.launch(study, *options, space=tiny_space))

    return run


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_search_runs_where_its_packages_are_installed(installer, launch, cluster, tmp_path, agree):
    assert importlib.util.find_spec(PACKAGE) is None
    code, talk = launch(f"by-{installer}", f"{installer}: [{PACKAGE}]\n")
    assert code == 0, talk
    assert "makes the environment on every node" in talk
    agree(f"by-{installer}", 2)
    client, env = [sys.executable, "-c", WHERE, cluster.address], {**os.environ, **cluster.env}
    client += [str(tmp_path / "env.yaml"), PACKAGE]
    place = subprocess.run(client, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert f"/runtime_resources/{installer}/" in place.stdout, place.stderr


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_a_package_that_does_not_exist_is_told_before_any_trial(installer, launch):
    code, talk = launch("absent", f"{installer}: [loraxs-search-has-no-such-package==1.0]\n")
    assert code == 1, talk
    assert talk.count(": environment: ") == 2, "one for each node"
    assert "loraxs-search-has-no-such-package" in talk
    assert "put right what --runtime-env asks for" in talk
    assert not StudyFolder.exists("absent"), "nothing is written"


WHERE = """
import sys
from loraxs_search.search.cluster.connection import connected
with connected(sys.argv[1], runtime_env=sys.argv[2]):
    import ray
    @ray.remote(num_cpus=1)
    def where(package):
        import importlib
        return importlib.import_module(package).__file__
    print(ray.get(where.remote(sys.argv[3])))
"""

from __future__ import annotations

import pytest
import ray

from loraxs_search.errors import ClusterError
from loraxs_search.search.cluster.connection import connected


def test_a_ray_that_does_not_start_is_an_error_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have a Ray in this process
    message = r"^Ray on this machine must be reachable, but: .* during startup\.$"
    with pytest.raises(ClusterError, match=message), connected(None):
        pass

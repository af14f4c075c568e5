"""What is asked of a cluster to serve on it, and what its proxy answers, without a cluster."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from loraxs_search.search.cluster.placement import Node
from loraxs_search.search.ray_proxy import middlewares
from loraxs_search.search.ray_serve import DEPLOYMENT, ServeArgs, build_app


def test_a_replica_has_a_gpu_or_an_even_share_of_the_cpus():
    for nodes, replicas, expected in (
        ([(8, 0)] * 4, 4, ("cpu", 8)),
        ([(8, 0), (4, 0)], 2, ("cpu", 4)),  # with six each, the second one would have no room
        ([(2, 0)], 4, ("cpu", 1)),
        ([(0, 0), (8, 1), (8, 1)], 2, ("cuda", 1)),
        ([], 2, ("cpu", 1)),
    ):
        args = ServeArgs(replicas=replicas)
        fitted = args.fitted([Node(str(i), *offers) for i, offers in enumerate(nodes)], None)
        assert (fitted.device, fitted.num_cpus) == expected
    assert args.fitted([Node("a", 8, 1)], "cpu").device == "cpu", "it was named"


def test_arguments_become_those_of_ray_serve_and_what_does_not_fit_is_refused():
    for wrong in ({"task": ["a"]}, {"replicas": 0}, {"device": "cuda:1"}, {"replicas": 3, "max_replicas": 2}):
        with pytest.raises(ValueError, match=next(reversed(wrong))):
            build_app(wrong)
    args = {"tasks": ["a"], "device": "cuda", "replicas": 2, "max_replicas": 4, "ongoing_requests": 8, "queue": 100}
    deployment = build_app(args)._bound_deployment
    assert deployment.name == DEPLOYMENT
    assert deployment.ray_actor_options | {"num_cpus": 1, "num_gpus": 1} == deployment.ray_actor_options
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 4, 8)
    assert deployment.max_ongoing_requests > 100 + 64, "whatever a pass and the queue have no room for is refused by us"


def test_a_request_whose_replica_died_is_answered_to_be_sent_again():
    async def nothing(*_):
        """As Ray's proxy does then."""

    app = Starlette(middleware=middlewares())
    app.router.default = nothing
    answer = TestClient(app).post("/classify", json={})
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["error"]["code"]) == (503, "1", 503)
    other = TestClient(Starlette(middleware=middlewares())).get("/nowhere")
    assert (other.status_code, other.text) == (404, "Not Found")

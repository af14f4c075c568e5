"""The line that cluster/README.md gives for Ray jobs, run as it stands on a cluster with a dashboard and a token."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from faults.nodes import Node, ray_cluster
from support.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
README = Path(__file__).parents[2] / "cluster" / "README.md"


@pytest.fixture
def head(in_search_home, full_ray):
    """The environment of who works on a head with one CPU and a dashboard."""
    port, agents = free_port(), free_port()
    options = ("--num-cpus=1", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agents}")
    path = f"{full_ray.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)  # of the head, and so of its jobs
        with ray_cluster([Node()], {0: in_search_home}, head=options, ray=full_ray) as made:
            yield {**os.environ, **made.env, "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}


@pytest.mark.long(part="cluster")
def test_the_line_for_a_job_searches_on_the_cluster(head, tiny_space, agree):
    (line,) = re.findall(r"`(ray job submit -- .*?)`", README.read_text())
    small = "--name job --set search.trials=2 --set search.max_steps=4"
    command = shlex.split(f"{line.replace('SPACE', str(tiny_space))} {small}")
    called = {"capture_output": True, "text": True, "timeout": 180}
    done = subprocess.run(command, check=False, env=head, **called)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "next: loraxs-search promote job" in done.stdout, "the job's own talk is shown where it was submitted"
    agree("job", 2)

    refused = subprocess.run(command, check=False, env=head | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}, **called)
    assert refused.returncode != 0
    assert "token" in refused.stderr

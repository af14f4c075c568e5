"""cluster/mlflow/serve.sh as its header says: on PostgreSQL and SeaweedFS, with accounts, behind Caddy over https."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import urllib.parse
from pathlib import Path

import pytest
import requests
from support.pages import ROOT
from support.servers import BUCKET, Server, no_postgres, postgres, responds, seaweedfs
from support.shell import Shell, free_port

pytestmark = [pytest.mark.long(part="storage"), pytest.mark.timeout(500)]
ADMIN, SEARCHER = ("admin", "a long enough p@ssword"), ("searcher", "another long passw0rd")
CADDYFILE = """{{
    admin off
    storage file_system {folder}
    auto_https disable_redirects
    skip_install_trust
}}
https://localhost:{port} {{
    bind 127.0.0.1
    tls internal
    reverse_proxy 127.0.0.1:{mlflow}
}}
"""


@pytest.fixture
def team(tmp_path):
    """A team's MLflow by https, what its proxy stands before, and the certificate of who signed the proxy's."""
    if (caddy := shutil.which("caddy")) is None:
        pytest.skip("Caddy (Debian package caddy) is not installed")
    if (reason := no_postgres()) is not None:
        pytest.skip(reason)
    folder, config, port, inner = tmp_path / "caddy", tmp_path / "Caddyfile", free_port(), free_port()
    config.write_text(CADDYFILE.format(folder=folder, port=port, mlflow=inner))
    authority = folder / "pki" / "authorities" / "local" / "root.crt"
    uri, behind = f"https://localhost:{port}", f"http://127.0.0.1:{inner}"
    with seaweedfs(tmp_path) as bucket, postgres(tmp_path) as (database, _), contextlib.ExitStack() as stack:
        parts = urllib.parse.urlsplit(database)
        variables = bucket | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PGHOST": str(parts.hostname),
            "PGPORT": str(parts.port),
            "PGUSER": str(parts.username),
            "PGDATABASE": parts.path.removeprefix("/"),
            "PGPASSWORD": "any: this database trusts its machine",
            "ARTIFACTS": f"s3://{BUCKET}/mlflow",
            "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "any long random text",
            "ALLOWED_HOSTS": f"localhost:{port},127.0.0.1:{inner}",
            "PORT": str(inner),
        }
        variables["MLFLOW_S3_ENDPOINT_URL"] = variables.pop("AWS_ENDPOINT_URL")
        serve, proxy = [str(ROOT / "cluster" / "mlflow" / "serve.sh")], [caddy, "run", "--config", str(config)]
        proxy += ["--adapter", "caddyfile"]
        stack.enter_context(Server(serve, tmp_path / "mlflow.log", lambda: responds(f"{behind}/health"), variables))
        is_up, home = functools.partial(responds, f"{uri}/health", verify=str(authority)), {"HOME": str(tmp_path)}
        stack.enter_context(Server(proxy, tmp_path / "caddy.log", is_up, home))
        yield uri, behind, authority


def test_a_team_searches_promotes_and_pulls_over_https(team, tiny_space, fresh_home, tmp_path, monkeypatch):
    def account(user: str, password: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    uri, behind, authority = team
    place, trusting = ("--tracking-uri", uri), {"verify": str(authority), "timeout": 30}
    create = {"username": SEARCHER[0], "password": SEARCHER[1]}
    requests.post(f"{uri}/api/2.0/mlflow/users/create", json=create, auth=ADMIN, **trusting).raise_for_status()
    stranger = requests.get(f"{uri}/api/2.0/mlflow/experiments/get?experiment_id=0", **trusting)
    assert stranger.status_code == 401
    other = requests.get(behind, headers={"Host": "other.example.org"}, auth=ADMIN, timeout=30)
    assert other.status_code == 403, "ALLOWED_HOSTS has no such name"

    account(*SEARCHER)
    shell, short = Shell(fresh_home, tmp_path), ("search.trials=2", "search.max_steps=4", "promotion.seeds=0")
    launch = ("launch", str(tiny_space), "--name", "s", *place, *(part for it in short for part in ("--set", it)))
    refused = shell.run(*launch)
    assert refused.returncode == 1
    assert "REQUESTS_CA_BUNDLE" in refused.stderr
    assert not (fresh_home / "studies").exists(), "nothing was searched"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    shell.ok(*launch)
    account(*ADMIN)  # a task's first promotion
    shell.ok("promote", "s", "--force")
    account(*SEARCHER)
    pulled = Shell(tmp_path / "elsewhere", tmp_path).ok("pull", "tiny-reviews", *place).strip()
    assert (Path(pulled) / "adapter_model.safetensors").is_file()

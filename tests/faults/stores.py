"""MLflow as a team has it: a server on PostgreSQL with artifacts on an S3 API, all on loopback ports, ended by pid."""

from __future__ import annotations

import contextlib
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.ports import free_port
from support.servers import Server, postgres

BUCKET = "adapters"
_KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class TeamStore:
    """The three servers, and the address that a search is given."""

    uri: str
    database: Server
    s3: Server
    mlflow: Server
    s3_url: str

    def num_artifacts(self) -> int:
        """Count the objects in the bucket."""
        import boto3

        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
        pages = boto3.client("s3", endpoint_url=self.s3_url, **keys).get_paginator("list_objects_v2")
        return sum(page["KeyCount"] for page in pages.paginate(Bucket=BUCKET))


@contextlib.contextmanager
def team_store(folder: Path, host: str = "127.0.0.1") -> Iterator[TeamStore]:
    """Start all three, and end them; MLflow listens at `host`."""
    folder.mkdir()
    s3_url, s3 = _s3(folder)
    uri = f"http://{host}:{(port := free_port())}"
    with postgres(folder) as (database_uri, database):
        command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", database_uri]
        command += ["--artifacts-destination", f"s3://{BUCKET}"]
        env = {"MLFLOW_S3_ENDPOINT_URL": s3_url, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **_KEYS}
        env["MLFLOW_DISABLE_TELEMETRY"] = "true"
        mlflow = Server(command, folder / "mlflow.log", lambda: _is_up(f"{uri}/health"), env)
        try:
            s3.start()
            _make_bucket(s3_url)
            mlflow.start()
            yield TeamStore(uri, database, s3, mlflow, s3_url)
        finally:
            mlflow.kill()
            s3.kill()


# ---- each of the three -----------------------------------------------------------------------------------------------
def _s3(folder: Path) -> tuple[str, Server]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    return url, Server(command, folder / "s3.log", lambda: _is_up(f"{url}/moto-api/"))


def _make_bucket(url: str) -> None:
    request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=testing/20200101/us-east-1/s3/aws4_request")
    with urllib.request.urlopen(request, timeout=10):
        pass


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False

"""MLflow as a team has it: a server on PostgreSQL with artifacts on an S3 API, all on loopback ports, ended by pid."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.ports import free_port
from support.servers import BUCKET, Server, no_postgres, postgres, responds, seaweedfs_server


@dataclass
class TeamStore:
    """The three servers, and the address that a search is given.

    Args:
        s3_env: What leads to the bucket.
    """

    uri: str
    database: Server
    s3: Server
    mlflow: Server
    s3_env: dict[str, str]


def no_team_store() -> str | None:
    """Say why the three cannot run here; None when they can."""
    return no_postgres()


@contextlib.contextmanager
def team_store(folder: Path, host: str = "127.0.0.1") -> Iterator[TeamStore]:
    """Start all three, and end them; MLflow listens at `host`."""
    folder.mkdir()
    s3_env, s3 = seaweedfs_server(folder)
    uri = f"http://{host}:{(port := free_port())}"
    with postgres(folder) as (database_uri, database):
        command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", database_uri]
        command += ["--artifacts-destination", f"s3://{BUCKET}/mlflow"]
        env = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"} | s3_env
        env["MLFLOW_S3_ENDPOINT_URL"] = env.pop("AWS_ENDPOINT_URL")
        mlflow = Server(command, folder / "mlflow.log", lambda: responds(f"{uri}/health"), env)
        try:
            s3.start()
            mlflow.start()
            yield TeamStore(uri, database, s3, mlflow, s3_env)
        finally:
            mlflow.kill()
            s3.kill()

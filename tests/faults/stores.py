"""MLflow as a team has it: a server on PostgreSQL with artifacts on an S3 API, all on loopback ports, ended by pid."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.servers import BUCKET, MlflowServer, Server, postgres, seaweedfs_server


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


@contextlib.contextmanager
def team_store(folder: Path, host: str = "127.0.0.1") -> Iterator[TeamStore]:
    """Start all three, and end them; MLflow listens at `host`."""
    folder.mkdir()
    s3_env, s3 = seaweedfs_server(folder)
    with postgres(folder) as (database_uri, database):
        mlflow = MlflowServer(folder, database_uri, f"s3://{BUCKET}/mlflow", host)
        mlflow.env |= {**s3_env, "MLFLOW_S3_ENDPOINT_URL": s3_env["AWS_ENDPOINT_URL"]}
        del mlflow.env["AWS_ENDPOINT_URL"]
        with s3, mlflow:
            yield TeamStore(mlflow.uri, database, s3, mlflow, s3_env)

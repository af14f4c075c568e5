"""MLflow as a team has it: a server on PostgreSQL with artifacts on an S3 API, all on loopback ports, ended by pid."""

from __future__ import annotations

import contextlib
import subprocess
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


# ---- file systems that are small or full; the right to mount is needed, as root has it -------------------------------
@dataclass(frozen=True)
class Disk:
    """A mounted file system of a fixed size."""

    path: Path

    def fill(self) -> None:
        """Write until nothing more fits."""
        with (self.path / "ballast").open("ab", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def free(self) -> None:
        """Make room again."""
        (self.path / "ballast").unlink()


def no_mounts(folder: Path) -> str | None:
    """Say why nothing can be mounted here; None when it can."""
    try:
        with disk(folder / "probe", 1):
            return None
    except subprocess.CalledProcessError as error:
        return f"no right to mount: {error.stderr.decode().strip()}"


@contextlib.contextmanager
def disk(path: Path, megabytes: int) -> Iterator[Disk]:
    """Mount a file system in memory at `path`, and take it away."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "loraxs-test", str(path)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True, capture_output=True)

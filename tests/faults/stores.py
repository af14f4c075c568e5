"""MLflow as a team has it: a server on PostgreSQL with artifacts on an S3 API, all on loopback ports, ended by pid."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

BUCKET = "adapters"
_KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}


def no_postgres() -> str | None:
    """Say why PostgreSQL cannot run here; None when it can."""
    if _postgres_binary("initdb") is None:
        return "PostgreSQL (Debian package postgresql) is not installed"
    if os.geteuid() == 0 and _postgres_user() is None:
        return "PostgreSQL does not run as root, and there is no user `postgres`"
    return None


@dataclass
class Server:
    """A program on a port, started and killed at will, with a log."""

    command: list[str]
    log: Path
    answers: Callable[[], bool]
    env: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 120.0) -> None:
        """Start, and return when it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                user=self.user,
                cwd="/",
                start_new_session=True,
            )
        end = time.monotonic() + timeout_s
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"{self.command[0]} did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.2)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it with what it started; at once, unless another signal is given."""
        if self.process is not None:
            os.killpg(self.process.pid, number)
            self.process.wait()
            self.process = None


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
def team_store(folder: Path) -> Iterator[TeamStore]:
    """Start all three, and end them."""
    folder.mkdir()
    data = Path(tempfile.mkdtemp(prefix="lx-pg-"))  # a place that another user can reach
    database_uri, database = _database(folder, data)
    s3_url, s3 = _s3(folder)
    port = _free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database_uri, "--artifacts-destination", f"s3://{BUCKET}"]
    env = {"MLFLOW_S3_ENDPOINT_URL": s3_url, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **_KEYS}
    env["MLFLOW_DISABLE_TELEMETRY"] = "true"
    mlflow = Server(command, folder / "mlflow.log", lambda: _is_up(f"{uri}/health"), env)
    try:
        database.start()
        s3.start()
        _make_bucket(s3_url)
        mlflow.start()
        yield TeamStore(uri, database, s3, mlflow, s3_url)
    finally:
        mlflow.kill()
        s3.kill()
        database.kill(signal.SIGINT)  # PostgreSQL's fast shutdown; SIGKILL would leave its shared memory behind
        shutil.rmtree(data)


# ---- each of the three -----------------------------------------------------------------------------------------------
def _database(folder: Path, data: Path) -> tuple[str, Server]:
    user = _postgres_user() if os.geteuid() == 0 else None
    if user is not None:
        os.chown(data, pwd.getpwnam(user).pw_uid, -1)
    initdb, postgres = _postgres_binary("initdb"), _postgres_binary("postgres")
    assert initdb is not None
    assert postgres is not None
    options = ["-D", str(data), "-U", "mlflow", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8"]
    subprocess.run([initdb, *options], user=user, cwd="/", check=True, capture_output=True)
    port = _free_port()
    command = [postgres, "-D", str(data), "-p", str(port), "-k", "", "-c", "listen_addresses=127.0.0.1"]
    address = f"//mlflow@127.0.0.1:{port}/postgres"
    server = Server(command, folder / "pg.log", lambda: _takes_queries(f"postgresql:{address}"), user=user)
    return f"postgresql+psycopg2:{address}", server


def _s3(folder: Path) -> tuple[str, Server]:
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    return url, Server(command, folder / "s3.log", lambda: _is_up(f"{url}/moto-api/"))


def _make_bucket(url: str) -> None:
    request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
    request.add_header("Authorization", "AWS4-HMAC-SHA256 Credential=testing/20200101/us-east-1/s3/aws4_request")
    with urllib.request.urlopen(request, timeout=10):
        pass


def _postgres_binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))  # where Debian puts them, off PATH
    return str(found[-1]) if found else shutil.which(name)


def _postgres_user() -> str | None:
    return next((entry.pw_name for entry in pwd.getpwall() if entry.pw_name == "postgres"), None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _takes_queries(uri: str) -> bool:
    import psycopg2

    try:
        psycopg2.connect(uri).close()
    except psycopg2.OperationalError:
        return False
    return True


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False

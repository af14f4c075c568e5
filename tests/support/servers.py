"""Programs on a loopback port, started and ended by pid: MLflow, and PostgreSQL as a user who is not root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.ports import free_port


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
            where = {"env": {**os.environ, **self.env}, "user": self.user, "cwd": "/"}
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True, **where)
        end = time.monotonic() + timeout_s
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"{self.command[0]} did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.2)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it with what it started; at once, as a crash would, unless another signal is given."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself, and so did what it started
                os.killpg(self.process.pid, number)
            self.process.wait()
            self.process = None


class MlflowServer(Server):
    """A real `mlflow server` on a loopback port; its database stays between starts.

    Args:
        database_uri: None means a SQLite database in `folder`.
    """

    def __init__(self, folder: Path, database_uri: str | None = None) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--artifacts-destination", str(folder / "artifacts")]
        command += ["--backend-store-uri", database_uri or f"sqlite:///{folder / 'server.db'}"]
        environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        super().__init__(command, folder / "server.log", self._is_up, environment)

    def _is_up(self) -> bool:
        from loraxs_search.errors import TrackingError
        from loraxs_search.mlflow_uri import check_server

        try:
            check_server(self.uri, timeout_s=1.0)
        except TrackingError:
            return False
        return True


# ---- PostgreSQL ------------------------------------------------------------------------------------------------------
def no_postgres() -> str | None:
    """Say why PostgreSQL cannot run here; None when it can."""
    if _postgres_binary("initdb") is None:
        return "PostgreSQL (Debian package postgresql) is not installed"
    if os.geteuid() == 0 and _postgres_user() is None:
        return "PostgreSQL does not run as root, and there is no user `postgres`"
    return None


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, Server]]:
    """Run a database of its own; yield its address for SQLAlchemy, and the server.

    Args:
        folder: Where its log goes.
    """
    data = Path(tempfile.mkdtemp(prefix="lx-pg-"))  # a place that another user can reach
    address, server = _database(folder, data)
    try:
        server.start()
        yield address, server
    finally:
        server.kill(signal.SIGINT)  # PostgreSQL's fast shutdown; SIGKILL would leave its shared memory behind
        shutil.rmtree(data)


def _database(folder: Path, data: Path) -> tuple[str, Server]:
    user = _postgres_user() if os.geteuid() == 0 else None
    if user is not None:
        os.chown(data, pwd.getpwnam(user).pw_uid, -1)
    initdb, postgres = _postgres_binary("initdb"), _postgres_binary("postgres")
    assert initdb is not None
    assert postgres is not None
    options = ["-D", str(data), "-U", "mlflow", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8"]
    subprocess.run([initdb, *options], user=user, cwd="/", check=True, capture_output=True)
    port = free_port()
    command = [postgres, "-D", str(data), "-p", str(port), "-k", "", "-c", "listen_addresses=127.0.0.1"]
    address = f"//mlflow@127.0.0.1:{port}/postgres"
    server = Server(command, folder / "pg.log", lambda: _takes_queries(f"postgresql:{address}"), user=user)
    return f"postgresql+psycopg2:{address}", server


def _postgres_binary(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))  # where Debian puts them, off PATH
    return str(found[-1]) if found else shutil.which(name)


def _postgres_user() -> str | None:
    return next((entry.pw_name for entry in pwd.getpwall() if entry.pw_name == "postgres"), None)


def _takes_queries(uri: str) -> bool:
    import psycopg2

    try:
        psycopg2.connect(uri).close()
    except psycopg2.OperationalError:
        return False
    return True

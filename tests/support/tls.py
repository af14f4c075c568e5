"""A server behind TLS, whose certificate an authority has signed that no machine knows, as one inside a company."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class _Healthy(BaseHTTPRequestHandler):
    """Answers /health alone."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


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
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}", authority
        finally:
            server.shutdown()
            thread.join()


def _certificate(folder: Path, name: str, *options: str) -> Path:
    path = folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", *options]
    command += ["-addext", "keyUsage=digitalSignature,keyCertSign"]  # Python 3.13 wants it of an authority
    command += ["-keyout", str(path.with_suffix(".key")), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path

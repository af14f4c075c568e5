"""MLflow behind Caddy, whose certificate an authority of its own has signed: search, promote and pull over https."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ports import free_port
from support.servers import MlflowServer, Server
from support.shell import Shell

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
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
def https(mlflow_server: MlflowServer, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of the server by https, and the certificate of the authority."""
    if (program := shutil.which("caddy")) is None:
        pytest.skip("Caddy (Debian package caddy) is not installed")
    folder, port = tmp_path / "caddy", free_port()
    authority, config = folder / "pki" / "authorities" / "local" / "root.crt", tmp_path / "Caddyfile"
    config.write_text(CADDYFILE.format(folder=folder, port=port, mlflow=mlflow_server.port))
    command = [program, "run", "--config", str(config), "--adapter", "caddyfile"]
    caddy = Server(command, tmp_path / "caddy.log", lambda: _greets(port, authority), {"HOME": str(tmp_path)})
    try:
        caddy.start()
        yield f"https://localhost:{port}", authority
    finally:
        caddy.kill()


def _greets(port: int, authority: Path) -> bool:
    try:
        context = ssl.create_default_context(cafile=authority)
        with socket.create_connection(("127.0.0.1", port)) as plain:
            context.wrap_socket(plain, server_hostname="localhost").close()
    except OSError:
        return False
    return True


def test_a_private_authority_is_named_once_and_then_trusted(
    https: tuple[str, Path], tiny_space: Path, fresh_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, authority = https
    shell, place = Shell(fresh_home, tmp_path), ("--tracking-uri", uri)
    short = ("search.trials=2", "search.max_steps=4", "promotion.seeds=0")
    launch = ("launch", str(tiny_space), "--name", "s", *place, *(part for it in short for part in ("--set", it)))
    refused = shell.run(*launch)
    assert refused.returncode == 1
    assert "REQUESTS_CA_BUNDLE" in refused.stderr
    assert not (fresh_home / "studies").exists(), "nothing was searched"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    shell.ok(*launch)
    shell.ok("promote", "s", "--force")
    monkeypatch.setenv("LORAXS_HOME", str(tmp_path / "elsewhere"))
    pulled = Shell(tmp_path / "elsewhere", tmp_path).ok("pull", "tiny-reviews", *place).strip()
    assert (Path(pulled) / "adapter_model.safetensors").is_file()

"""An account in `--tracking-uri` reaches the server, and no listing of processes."""

from __future__ import annotations

import socket
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

PROCESSES = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are listed in /proc")


@PROCESSES
@pytest.mark.parametrize("write", [lambda uri: ["--tracking-uri", uri], lambda uri: [f"--tracking-uri={uri}"]])
def test_the_command_line_of_a_running_process_shows_no_password(write):
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-m", "loraxs_search", "ls", *write(uri)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            connection, _ = server.accept()  # it waits for an answer
            with connection:
                request = connection.recv(4096).decode()
                line = Path(f"/proc/{process.pid}/cmdline").read_text()
                process.kill()
            said = "".join(process.communicate())
    assert f"Authorization: Basic {b64encode(b'me:secret').decode()}" in request
    assert f"http://127.0.0.1:{uri.rpartition(':')[2]}" in line
    assert "secret" not in line + said


def test_an_address_in_the_wrong_place_is_refused_and_its_account_not_shown(say):
    refused = say("ls", "http://me:secret@mlflow.example")
    assert "unexpected extra argument" in refused.err
    assert "secret" not in refused.out + refused.err


def test_an_address_that_cannot_be_read_is_refused_as_ever():
    command = [sys.executable, "-m", "loraxs_search", "ls", "--tracking-uri", "postgresql://me:secret@db/runs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "must be sqlite:///FILE or http(s)://SERVER" in done.stderr
    assert "secret" not in done.stdout + done.stderr

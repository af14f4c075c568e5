"""The MLflow UI that `ui` serves, in a real browser: the task, its search, the trials, a metric, the champion."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraxs_search.errors import TrackingError
from loraxs_search.mlflow_http import check_server

CHROMIUM = Path("/usr/bin/chromium")  # Debian's package `chromium`
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's package chromium"),
]


@pytest.fixture(scope="module")
def ui(searched) -> Iterator[str]:
    """The address of `loraxs-search ui`, started on a free port and ended with Ctrl-C."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    shell = searched.shell
    log = shell.folder / "ui.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            shell.command("ui", "--port", str(port)),
            stdout=out,
            stderr=out,
            env=shell.environment(),
            cwd=shell.folder,
            start_new_session=True,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0, log.read_text()[-2000:]
        assert "Traceback" not in log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            return check_server(address, timeout_s=1.0)
        except TrackingError:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.3)


@pytest.fixture(scope="module")
def page(ui: str) -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        page = browser.new_page(viewport={"width": 1600, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def test_the_search_and_its_trials_can_be_browsed(page, ui, tmp_path):
    page.goto(ui)
    page.get_by_text("Model training").click()
    page.get_by_text("movie-reviews").first.click()
    page.locator("[role=row]").filter(has_text="reviews").locator("button").first.click()  # unfold the search
    for trial in ("00000", "00001"):
        page.get_by_text(trial).first.wait_for()
    page.screenshot(path=str(tmp_path / "experiment.png"))
    page.get_by_text("00000").first.click()
    for shown in ("accuracy", "stored_bytes", "learning_rate", "Parent run"):
        page.get_by_text(shown, exact=True).first.wait_for()
    page.screenshot(path=str(tmp_path / "trial.png"))


def test_the_champion_is_a_registered_model(page, ui, tmp_path):
    page.goto(f"{ui}/#/models/movie-reviews")
    page.get_by_text("champion").first.wait_for()
    page.screenshot(path=str(tmp_path / "champion.png"))

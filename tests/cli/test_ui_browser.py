"""The MLflow UI that `ui` serves, in a real browser: trials, a curve, the report, the model, a search that is steered.

Screenshots stay in pytest's folder, or in the one that LORAXS_TEST_SCREENSHOTS names.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from typing import Any

import pytest
from support.browsers import CHROMIUM, chromium

# What MLflow's own pages ask for in vain: accounts, which our server has none of, and a file of its flavours.
RESIZED = "ResizeObserver loop completed"  # the browser says so when it lays out later: no fault of a page
ASKED_IN_VAIN = ("/mlflow/users/current", "get-artifact?path=MLmodel")
TRAINING = "workflowType=machine_learning"
pytestmark = [
    pytest.mark.long(part="browser"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's package chromium"),
]


@pytest.fixture(scope="module")
def link(searched, tmp_path_factory):
    """What `loraxs-search ui STUDY` prints; it is ended with Ctrl-C, and leaves no process."""
    shell = searched.shell
    said = tmp_path_factory.mktemp("ui") / "stderr"
    with said.open("wb") as err:
        process = subprocess.Popen(
            shell.command("ui", searched.study, "--no-open"),
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            env=shell.environment(),
            cwd=shell.folder,
            start_new_session=True,
        )
    try:
        printed = process.stdout.readline().strip()
        assert printed, said.read_text()
        yield printed
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, said.read_text()
        assert process.stdout.read() == ""
        assert said.read_text().splitlines() == ["starting the UI; Ctrl-C ends it"]
        assert str(shell.home / "mlflow.db") not in subprocess.check_output(["ps", "-ewwo", "args"], text=True)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser):
    """A page that nothing fails on but what MLflow asks for in vain."""
    page = browser.new_page(viewport={"width": 1900, "height": 1000})
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(_said(said)) if said.type == "error" else None)
    yield page
    page.close()
    assert [error for error in errors if not any(known in error for known in (*ASKED_IN_VAIN, RESIZED))] == []


def _said(message: Any) -> str:
    return f"{message.text} {message.location.get('url', '')}"


def cells(page: Any, column: str) -> list[str]:
    """The texts of a column of the table of runs, from top to bottom."""
    page.locator(f'[role=gridcell][col-id="{column}"]').first.wait_for()
    rows = page.locator("[role=row][row-index]").filter(has=page.locator(f'[role=gridcell][col-id="{column}"]'))
    by_row = {
        int(row.get_attribute("row-index")): row.locator(f'[role=gridcell][col-id="{column}"]').inner_text()
        for row in rows.all()
    }
    return [text for _, text in sorted(by_row.items())]


def test_the_printed_link_shows_the_trials_of_the_study_best_first(page, link):
    assert TRAINING in link
    page.goto(link)
    page.get_by_role("link", name="#0 r").first.wait_for()
    accuracies = [float(text) for text in cells(page, "metrics.`accuracy`")]
    assert len(accuracies) == 2
    assert accuracies == sorted(accuracies, reverse=True)
    assert set(cells(page, "params.`rank`")) <= {"4", "8", "16"}
    for column in ("params.`target_modules`", "metrics.`stored_bytes`", "tags.`loraxs.state`", "tags.`loraxs.reason`"):
        assert all(cells(page, column)), column
    for name in cells(page, "attributes.`Run Name`"):
        assert re.fullmatch(r"#[01] r\d+ \S+ lr .*", name.splitlines()[-1]), name  # after the colour of its dot
    page.get_by_text("Sequence classification into negative, positive.").first.wait_for()

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

TRAINING = "workflowType=machine_learning"
pytestmark = [
    pytest.mark.long(part="browser"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's package chromium"),
]


@pytest.fixture(scope="module")
def link(searched):
    """What `loraxs-search ui STUDY` prints; it is ended with Ctrl-C."""
    shell = searched.shell
    command, place = shell.command("ui", searched.study, "--no-open"), {"env": shell.environment(), "cwd": shell.folder}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, **place)
    try:
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout.read() == ""
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
    page = browser.new_page(viewport={"width": 1900, "height": 1000})
    page.set_default_timeout(60_000)
    yield page
    page.close()


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

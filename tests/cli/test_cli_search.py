"""One real search through the command line, run outside the checkout, and everything done with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from support.browsers import CHROMIUM, chromium

import loraxs_search
from loraxs_search.errors import StudyError

pytestmark = pytest.mark.slow


@pytest.fixture
def ask(say, searched, monkeypatch):
    """Run a command line in this process, about the shared search."""
    monkeypatch.setenv("LORAXS_HOME", str(searched.shell.home))
    monkeypatch.chdir(searched.shell.folder)
    return say


def test_launch_prints_a_leaderboard_and_tells_the_rest_on_stderr(searched, ask):
    _, *rows = searched.launched.stdout.splitlines()
    assert sorted(row.split()[0] for row in rows) == ["00000", "00001", "constant", "features", "tfidf"]
    stderr = searched.launched.stderr
    assert "[2/2]" in stderr
    assert stderr.endswith("next: loraxs-search promote reviews\n")
    assert "Traceback" not in stderr
    assert "\x1b[" not in stderr, "no escapes in a pipe"
    path = searched.shell.home / "studies" / "reviews" / "report.html"
    assert 'class="state finished"' in path.read_text(), "no search that runs"
    kept = [kept.read_text() for kept in (searched.shell.home / "artifacts").rglob("report.html")]
    assert sum("<h1>reviews " in text for text in kept) == 1  # other tests search in this home, too
    assert ask("report", "reviews").ok == f"{path}\n"


def test_check_foretells_what_is_stored(ask):
    trial = json.loads(ask("status", "reviews", "--json").ok)["trials"][0]
    fixed = [f"parameters.{name}={trial['params'][name]}" for name in ("rank", "target_modules")]
    options = [part for each in fixed for part in ("--set", each)]
    described = json.loads(ask("check", "movie_reviews", "--json", *options).ok)["description"]
    assert described["smallest"] == described["largest"]
    assert described["largest"]["size"]["r_parameters"] == trial["r_parameters"]
    assert described["largest"]["size"]["stored_bytes"] == trial["stored_bytes"]


def test_a_refusal_is_a_result(ask):
    assert json.loads(ask("promote", "reviews", "--json").ok)["promoted"] is False
    verdicts = [decision["promoted"] for decision in json.loads(ask("history", "movie-reviews", "--json").ok)]
    assert (verdicts[0], verdicts[-1]) == (True, False)


def test_pull_prints_a_folder_and_predict_agrees(ask):
    folder = ask("pull", "movie-reviews").ok.removesuffix("\n")
    assert json.loads(ask("pull", "movie-reviews:1", "--json").ok)["path"] == folder
    texts = ["a moving, funny film", "two hours I will never get back"]
    printed = json.loads(ask("predict", "movie-reviews", *texts, "--json").ok)
    lines = ask("predict", folder, *texts).ok.splitlines()
    for prediction, line, text in zip(printed, lines, texts, strict=True):
        assert line == f"{prediction['label']}\t{prediction['score']:.3f}\t{text}"
    card = (Path(folder) / "README.md").read_text()
    assert "trained from 1 other seeds" in card
    assert re.search(r"base model \| 9\d,\d{3},\d{3} bytes", card)


def test_the_registry_is_listed_and_shown(ask):
    (line,) = [line for line in ask("ls").ok.splitlines() if line.startswith("movie-reviews")]
    assert line.split()[1:3] == ["1", "accuracy"]
    assert " ± " in line
    printed = {task["task"]: task for task in json.loads(ask("ls", "--json").ok)}["movie-reviews"]
    assert f"{printed['score']:.4f}" in line
    (version,) = json.loads(ask("show", "movie-reviews", "--json").ok)
    assert len(version["candidate"]["refits"]) == 1
    assert [each["label"] for each in version["by_class"]["classes"]] == ["negative", "positive"]
    assert 0 < len(version["by_class"]["wrong"]) <= 20
    assert version["candidate"]["test_metrics"]["accuracy"] == printed["score"]


def test_a_trial_is_tried_before_promotion(ask):
    trials = json.loads(ask("status", "reviews", "--json").ok)["trials"]
    complete = next(trial["trial_id"] for trial in trials if trial["state"] == "COMPLETE")
    (answer,) = loraxs_search.load(f"reviews/{complete}")("a fine film")
    printed = json.loads(ask("predict", f"reviews/{complete}", "a fine film", "--json").ok)
    assert printed[0]["label"] == answer.label
    kept = "keeps the adapters of its best trials"
    assert ask("predict", "reviews/99999", "so").is_error(1, "`reviews/TRIAL` must be one of: ", "got '99999'", kept)
    for none in ("", f"../adapters/{complete}"):
        with pytest.raises(StudyError, match=rf"^`reviews/TRIAL` must be one of: [\d., ]+, but got '{none}'"):
            loraxs_search.load(f"reviews/{none}")
    assert ask("predict", "reviewz/0", "so").is_error(1, "Did you mean reviews? `study` must be one of", "./reviewz/0")
    assert ask("predict", "reviews", "so").is_error(1, "reviews is a study: write reviews/TRIAL")


def test_what_a_reader_leaves_unread_is_no_error(searched):
    command = " ".join(searched.shell.command("spaces", "show", "movie_reviews"))
    pipe = ["bash", "-c", f"set -o pipefail; {command} | head -1"]
    env = searched.shell.environment()
    done = subprocess.run(pipe, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.long(part="browser")
@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's package chromium")
def test_the_link_that_ui_prints_shows_the_trials_of_the_study_best_first(searched):
    shell = searched.shell
    command, place = shell.command("ui", searched.study, "--no-open"), {"env": shell.environment(), "cwd": shell.folder}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, **place)
    try:
        link = process.stdout.readline().strip()
        assert "workflowType=machine_learning" in link
        with chromium() as browser:
            page = browser.new_page(viewport={"width": 1900, "height": 1000})
            page.set_default_timeout(60_000)
            page.goto(link)
            page.get_by_role("link", name="#0 r").first.wait_for()

            def cells(column: str) -> list[str]:
                """Return the texts of a column of the table of runs, from top to bottom."""
                own = f'[role=gridcell][col-id="{column}"]'
                page.locator(own).first.wait_for()
                rows = page.locator("[role=row][row-index]").filter(has=page.locator(own)).all()
                by_row = {int(row.get_attribute("row-index")): row.locator(own).inner_text() for row in rows}
                return [text for _, text in sorted(by_row.items())]

            accuracies = [float(text) for text in cells("metrics.`accuracy`")]
            assert len(accuracies) == 2
            assert accuracies == sorted(accuracies, reverse=True)
            assert set(cells("params.`rank`")) <= {"4", "8", "16"}
            told = ("tags.`loraxs.state`", "tags.`loraxs.reason`")
            for column in ("params.`target_modules`", "metrics.`stored_bytes`", *told):
                assert all(cells(column)), column
            for name in cells("attributes.`Run Name`"):
                assert re.fullmatch(r"#[01] r\d+ \S+ lr .*", name.splitlines()[-1]), name  # after its dot's colour
            page.get_by_text("Sequence classification into negative, positive.").first.wait_for()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stdout.read() == ""
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()

"""The judge of chaos catches what it is for; and five minutes of chaos break no rule."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from faults import chaos
from faults.arena import missing_means
from faults.history import History, Op, violations

pytestmark = pytest.mark.long(part="faults")
DIGESTS = {1: "aaa", 2: "bbb"}


def op(kind: str, began: float, ended: float, error: str = "", **value: Any) -> Op:
    return Op(kind, began, ended, value, error)


def champion(began: float, ended: float, version: int | None) -> Op:
    return op("champion", began, ended, version=version, number=version or 0)


def lease(began: float, generation: int, token: str = "", beat: int = 0) -> Op:
    return op("lease", began, began + 0.5, generation=generation, token=token or f"{generation}", beat=beat)


GOOD = [
    op("promote", 0, 2, code=0, said="", version=1),
    champion(1, 3, None),  # began before the promotion had ended
    champion(3, 4, 1),
    champion(9, 10, 2),
    op("pull", 3, 4, digest="aaa"),
    op("promote", 2, 3, code=1, said="error: A study must have come to its end to be promoted", version=None),
    op("promote", 4, 7, code=0, said="", version=2),
    op("pull", 6, 8, digest="aaa"),
    op("fault", 8, 12, hides_registry=True),
    op("pull", 9, 10, digest="aaa"),  # what was known before the registry went
    op("pull", 9, 13, error="TrackingError: the server does not answer"),
    op("driver", 0, 9, code=-9, said=""),
    *(lease(1, 1, beat=1), lease(2, 1, beat=2), lease(3, 0), lease(4, 2, beat=0), lease(4.2, 1, beat=2)),
]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (champion(8, 9, 1), "version 1 is the champion where [2] may be"),
        (op("promote", 90, 91, error="TimeoutExpired: 300 s"), "a promote does not come to its end"),
        (op("pull", 8, 9, digest="ccc"), "ccc is pulled and was never promoted"),
        (lease(5, 1, beat=3), "the lease is of generation 1 after 2"),
        (op("driver", 0, 9, code=1, said="Traceback (most recent call last)"), "shows a traceback"),
    ],
)
def test_what_may_not_be_is_said(bad, says):
    found = violations(History([*GOOD, bad]), DIGESTS)
    assert any(says in line for line in found), found


def test_what_may_be_is_not_blamed_and_what_nobody_has_seen_is_not_judged_to_be_right():
    assert violations(History(GOOD), DIGESTS) == []
    for kind in ("champion", "pull", "lease"):
        unseen = [own for own in GOOD if own.kind != kind]
        assert violations(History(unseen), DIGESTS) == [f"no {kind} has an answer"]


@pytest.mark.timeout(1200)
def test_five_minutes_of_chaos_break_no_rule(tmp_path):
    if reason := missing_means(tmp_path):
        pytest.skip(reason)
    done = subprocess.run(
        [sys.executable, chaos.__file__, "--minutes", "5", "--history", str(tmp_path / "history")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]

"""The judge of chaos catches what it is for; and five minutes of chaos break no rule."""

from __future__ import annotations

import subprocess
import sys

import pytest
from faults import chaos
from faults.arena import missing_means
from faults.history import History, Op, violations

pytestmark = pytest.mark.long(part="faults")
DIGESTS = {1: "aaa", 2: "bbb"}


def test_the_judge_blames_what_may_not_be_and_what_nobody_has_seen():
    def champion(began: float, version: int) -> Op:
        return Op("champion", began, began + 1, {"version": version, "number": version})

    promotions = [
        Op("promote", at, at + 2, {"code": 0, "said": "", "version": version}) for at, version in ((0, 1), (4, 2))
    ]
    said = violations(History([*promotions, champion(3, 1), champion(8, 1)]), DIGESTS)
    assert any("version 1 is the champion where [2] may be" in line for line in said)
    assert {"no pull has an answer", "no lease has an answer"} <= {*said}
    assert not any("version" in line for line in violations(History([*promotions, champion(3, 1)]), DIGESTS))


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

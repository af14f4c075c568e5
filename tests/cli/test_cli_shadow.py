"""What `promote` and `history` cite of a shadow log, this machine's or one that is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.said import Said
from support.searched_studies import Tried, confirm, searched
from support.studies import TASK
from support.toys import adapter

from loraxs_search.records import PromotionRule
from loraxs_search.registry.manifest import folder_digest
from loraxs_search.registry.shadow_log import shadow_log_path

LABELS = [0, 1] * 100


@pytest.fixture
def studies(store_uri: str, say: Callable[..., Said]) -> list[str]:
    """Return the digests of the finalists of two studies, the first of which is champion."""
    digests = []
    for study, wrong in (("first", 70), ("second", 10)):
        folder = searched(study, [Tried({"rank": 4}, 0.8)], promotion=PromotionRule())
        answers = [1 - label if row < wrong else label for row, label in enumerate(LABELS)]
        confirm(folder, "00000", [0.8], answers, LABELS)
        path = folder.adapter_path("00000")
        adapter(path, "00000", study.encode(), task=TASK, study=study)
        digests.append(folder_digest(path))
    assert say("promote", "first", "--tracking-uri", store_uri).ok.startswith("t: promoted")
    return digests


def write_log(path: Path, champion: str, challenger: str) -> None:
    names = {"champion_digest": champion, "challenger_digest": challenger, "at": "2026-11-29T05:00:00+00:00"}
    rows = [names | {"agree": row > 0} for row in range(40)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({f"shadow_{name}": own for name, own in row.items()}) + "\n" for row in rows))


@pytest.mark.parametrize("is_given", [False, True])
def test_the_decision_cites_the_log(
    studies: list[str], store_uri: str, say: Callable[..., Said], tmp_path: Path, *, is_given: bool
) -> None:
    path = tmp_path / "given.jsonl" if is_given else shadow_log_path("t")
    write_log(path, *studies)
    given = ["--shadow-log", str(path)] if is_given else []
    promoted = say("promote", "second", *given, "--tracking-uri", store_uri).ok
    line = (
        "shadow: it answered 40 rows of the champion's requests since 2026-11-29 05:00 UTC, 97.5% of them alike"
        f" ({studies[1][:12]} beside {studies[0][:12]})"
    )
    assert promoted.startswith("t: promoted")
    assert f"  {line}\n" in promoted
    assert f"    {line}\n" in say("history", "t", "--tracking-uri", store_uri).ok
    told = json.loads(say("history", "t", "--json", "--tracking-uri", store_uri).ok)[-1]["shadow"]
    assert (told["num_rows"], told["num_agreed"], told["champion"], told["challenger"]) == (40, 39, *studies)


def test_a_log_that_is_not_there_is_refused_before_anything_is_decided(
    studies: list[str], store_uri: str, say: Callable[..., Said], tmp_path: Path
) -> None:
    refused = say("promote", "second", "--shadow-log", str(tmp_path / "none.jsonl"), "--tracking-uri", store_uri)
    assert refused.is_error(2, "`--shadow-log` must be a file that `serve --shadow` wrote")
    assert len(json.loads(say("history", "t", "--json", "--tracking-uri", store_uri).ok)) == 1

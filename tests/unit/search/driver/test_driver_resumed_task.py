"""What a study learns is fixed when it is launched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.studies import study

from loraxs_search.search.driver import launch
from loraxs_search.search_space import parse_space
from loraxs_search.studies import StudyFolder

SPACE = "task: stsb\nbase_model: org/base\nparameters: {rank: 2, learning_rate: 0.01}\n"


@pytest.mark.parametrize("standardized", [True, False])
def test_a_regression_goes_on_with_the_numbers_it_began_with(
    fresh_home: Path, monkeypatch: pytest.MonkeyPatch, *, standardized: bool
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(launch, "_run_one", lambda info, space, *_: seen.append(space))
    task = parse_space(SPACE, source="s.yaml", folder=fresh_home).task
    assert task.standardized, "new studies are launched so"
    info = replace(study("other").info, name="s", task=replace(task, standardized=standardized))
    StudyFolder.create(info, SPACE)
    launch.resume("s")
    assert seen[0].task.standardized is standardized

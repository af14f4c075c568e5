"""Which run is whose, as it is remembered on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraxs_search.tracking._runs import StudyRuns


@pytest.mark.parametrize("torn", ["", '\n["t1", "run_'])
def test_a_map_of_version_0_1_0_is_read_to_its_end(torn: str, tmp_path: Path, store_uri: str) -> None:
    """It put newlines before lines, so that its last line has none behind it."""
    path = tmp_path / "tracking.runs.jsonl"
    path.write_text('\n["t0", "run_id", "r0"]\n["t0", "model_id", "m0"]' + torn)
    for _ in range(2):
        runs = StudyRuns(store_uri, study="s", study_id="s-1", experiment="e", map_path=path)
        assert runs.known("t0") == "r0"
        assert runs.known("t0", "model_id") == "m0"
        assert runs.known("t1") is None

"""Whole searches on hosts that stay, and on files that change."""

from __future__ import annotations

import gzip
import json
import shutil
import threading
from pathlib import Path

import pytest
from support.spaces import REVIEWS

from loraxs_search.errors import SearchInterruptedError, StudyError, TaskDataError, TrackingError
from loraxs_search.log.events import ShownEvent, TrialReported
from loraxs_search.log.study_log import SearchView
from loraxs_search.search.driver.launch import launch, resume
from loraxs_search.studies.folder import StudyFolder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


def test_what_only_a_host_sees_is_told_as_it_would_be_here_and_no_study_is_made(search):
    message = r"^Task tiny-reviews has 2 faults:\nDid you mean sentence\? `columns.text` must be one of: "
    with pytest.raises(TaskDataError, match=message):
        search("wrong-rows", "task.columns.text=sentense")
    assert not StudyFolder.exists("wrong-rows")


def test_mlflow_that_cannot_be_reached_ends_a_search_before_it_has_a_study(ray_here, in_search_home, tiny_space):
    with pytest.raises(TrackingError, match="must be reachable"):
        launch(str(tiny_space), name="unrecorded", tracking_uri="http://127.0.0.1:9")
    assert not StudyFolder.exists("unrecorded")


# ---- identity --------------------------------------------------------------------------------------------------------
@pytest.fixture
def own_files(tiny_space, tiny_base, tmp_path):
    """The tiny space on a base and rows that a test may change."""
    base, rows = tmp_path / "own-base", tmp_path / "train.jsonl"
    shutil.copytree(tiny_base, base)
    rows.write_bytes(gzip.decompress((REVIEWS / "validation.jsonl.gz").read_bytes()))
    text = tiny_space.read_text().replace(str(tiny_base), str(base))
    tiny_space.write_text(text.replace(str(REVIEWS / "validation.jsonl.gz"), str(rows)))
    return {"rows": rows, "weights": base / "model.safetensors", "config": base / "config.json"}


def change(what: str, file: Path) -> None:
    """Swap the labels, halve one weight, or divide by another number."""
    if what == "config":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_norm_eps": 0.5}))
        return
    if what == "rows":
        text = file.read_text().replace('"label": 0', '"label": #').replace('"label": 1', '"label": 0')
        file.write_text(text.replace('"label": #', '"label": 1'))
        return
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    weights["encoder.layer.0.output.dense.weight"] = weights["encoder.layer.0.output.dense.weight"] / 2
    save_file(weights, file, {"format": "pt"})


@pytest.mark.long(part="search")
def test_a_study_whose_files_were_changed_is_not_gone_on_with_until_they_are_back(
    ray_here, in_search_home, tiny_space, own_files
):
    stop = threading.Event()

    class Stopping(SearchView):
        def happened(self, event: ShownEvent) -> None:
            if isinstance(event, TrialReported):
                stop.set()

    plan = ("search.scheduler=none", "search.trials=3", "search.max_steps=40", "promotion.seeds=0")
    with pytest.raises(SearchInterruptedError):
        launch(str(tiny_space), name="changed", view=Stopping(), stop=stop, overrides=plan)
    begun = StudyFolder.open("changed").identity.read()
    assert begun is not None
    for what, differs in (
        ("rows", f"data fingerprint [0-9a-f]{{16}}, not {begun.data_fingerprint[:16]}"),
        ("weights", f"weight digest [0-9a-f]{{16}}, not {begun.base_digest[:16]}"),
        ("config", "`layer_norm_eps` 0.5, not 1e-12"),
    ):
        before = own_files[what].read_bytes()
        change(what, own_files[what])
        ray_here.clear()
        with pytest.raises(StudyError, match=rf"must go on with .* {differs}\."):
            resume("changed")
        own_files[what].write_bytes(before)
    ray_here.clear()
    assert len(resume("changed").trials) == 3
    assert StudyFolder.open("changed").identity.read() == begun

"""What people give to the Python functions."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

import loraxs_search
from loraxs_search import AdapterBank
from loraxs_search.base_model.locate import locate
from loraxs_search.cli.live_text import LinesView
from loraxs_search.errors import IntegrityError, RegistryError, StudyError, UsageError
from loraxs_search.records.task import BaseModelRef

TARGETS = ("bert.encoder.layer.0.attention.self.query",)


@pytest.fixture
def folder(tiny_base, make_adapter, tmp_path):
    return make_adapter(tmp_path / "adapter", locate(BaseModelRef(str(tiny_base))), rank=2, target_modules=TARGETS)


# ---- texts -----------------------------------------------------------------------------------------------------------
def test_one_name_goes_for_every_text_of_a_bank(folder):
    bank, texts = AdapterBank.of(str(folder)), ["a moving, funny film", "so so", "no"]
    assert bank.predict(str(folder), texts) == bank.predict([str(folder)] * 3, texts)
    assert bank.predict(str(folder), "so so") == bank.predict([str(folder)], ["so so"])
    with pytest.raises(UsageError, match="got 1 for 2"):
        bank.predict([str(folder)], ["one", "two"])


# ---- folders ---------------------------------------------------------------------------------------------------------
def test_a_folder_called_as_a_task_is_taken_for_it_if_it_is_said_to_be_one(folder, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "work"))
    shadow = Path(shutil.copytree(folder, tmp_path / "work" / "movie-reviews"))
    for use in (loraxs_search.load_adapter, AdapterBank.of):
        with pytest.raises(RegistryError, match="There is no task yet, but got 'movie-reviews'") as unknown:
            use("movie-reviews")
        assert "./movie-reviews" in str(unknown.value.hint)
    expected = loraxs_search.predict(shadow, "so so")
    for said in ("./movie-reviews", "../work/movie-reviews", "~/movie-reviews", Path("movie-reviews")):
        assert loraxs_search.predict(said, "so so") == expected
    for none in ("./elsewhere", "./movie-reviews/manifest.json"):
        with pytest.raises(IntegrityError, match="must be an adapter folder, but"):
            loraxs_search.predict(none, "so so")
    with pytest.raises(IntegrityError, match="no adapter folder"):
        loraxs_search.predict(".", "so so")
    with pytest.raises(StudyError, match="There is no study yet, but got 'runs'") as unclear:
        loraxs_search.predict("runs/movie-reviews", "so so")
    assert "./runs/movie-reviews" in str(unclear.value.hint)


def test_a_folder_in_a_pulled_folder_goes_along(fresh_home, tmp_path, monkeypatch):
    (tmp_path / "made" / "templates").mkdir(parents=True)
    (tmp_path / "made" / "templates" / "tool_use.jinja").write_text("so")
    monkeypatch.setattr("loraxs_search.api.pull_native", lambda name, uri: tmp_path / "made")
    pulled = loraxs_search.pull("t", out=tmp_path / "out")
    assert (pulled / "templates" / "tool_use.jinja").read_text() == "so"
    with pytest.raises(UsageError, match="new or empty folder"):
        loraxs_search.pull("t", out=pulled)


# ---- devices ---------------------------------------------------------------------------------------------------------
def test_a_device_that_is_not_there_is_refused(folder):
    for use in (loraxs_search.load, loraxs_search.load_adapter, AdapterBank.of):
        for device in ("xyz", "cuda:99"):
            with pytest.raises(UsageError, match=f"`device` .*'{device}'"):
                use(str(folder), device=device)


def test_a_view_and_progress_exclude_one_another():
    for verb in (loraxs_search.launch, loraxs_search.resume):
        with pytest.raises(UsageError, match="`progress` must go without a `view`"):
            verb("movie_reviews", progress=True, view=LinesView(io.StringIO(), ""))

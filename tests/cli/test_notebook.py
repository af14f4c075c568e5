"""A search in a notebook: its progress, its result, and the figures of its report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.notebook import Notebook, notebook
from support.searched_studies import Tried, searched

import loraxs_search
from loraxs_search.errors import UsageError

TRIALS = tuple(Tried({"rank": 4, "learning_rate": 10.0**-i}, 0.9 - i / 10) for i in range(1, 4))


@pytest.fixture
def cells(fresh_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    with notebook() as opened:
        yield opened


def test_progress_is_drawn_below_its_cell_and_stays_there(cells: Notebook) -> None:
    cells.run(
        "from loraxs_search.cli._live import NotebookView, in_notebook\n"
        "from loraxs_search.log.events import Phase\n"
        "known = in_notebook()\n"
        "with NotebookView('the UI') as view:\n"
        "    view.happened(Phase(study='s', at=1000.0, text='loading the base'))\n"
        "    view.happened(Phase(study='s', at=1000.1, text='scoring the candidates'))\n"
    )
    assert cells["known"]
    first, loading, last = cells.shown
    assert "waiting for the search" in first
    assert "loading the base" in loading
    assert "scoring the candidates" in last, "what comes too soon after a drawing is drawn at the end"
    assert cells.shown[-1].startswith("<pre")


def test_what_rows_are_like_stays_above_the_progress(cells: Notebook) -> None:
    cells.run(
        "from loraxs_search.cli._live import NotebookView\n"
        "from loraxs_search.log.events import DataRead, Phase\n"
        "from loraxs_search.records import DataReport\n"
        "sizes = {'train': 8373, 'validation': 1000, 'test': 1000}\n"
        "read = DataRead(study='s', at=1000.0, metric='f1', num_rows=sizes, report=DataReport(sizes))\n"
        "with NotebookView('') as view:\n"
        "    view.happened(read)\n"
        "    view.happened(Phase(study='s', at=1001.0, text='scoring the candidates'))\n"
    )
    rows, progress, _ = cells.shown[-1].partition("scoring the candidates")
    assert "8,373" in rows
    assert progress


def test_a_result_and_its_figures_show(cells: Notebook) -> None:
    folder = searched("s", TRIALS)
    cells.run(
        "from IPython.display import display\n"
        "from loraxs_search import SearchResult\n"
        "from loraxs_search.studies import StudyFolder\n"
        f"records = tuple(StudyFolder.open({folder.name!r}).journal().records.values())\n"
        "result = SearchResult('s', records, (), 12.3)\n"
        "display(result)\n"
        "figures = result.figures()\n"
    )
    assert "<table" in cells.shown[-1]
    assert cells["figures"].keys() == loraxs_search.figures("s").keys()
    for figure in cells["figures"].values():
        assert type(figure).__module__.startswith("plotly.graph_objs")
        assert figure.data
    assert len(cells["figures"]) >= 3


def test_outside_a_notebook_nothing_is_drawn_below_a_cell() -> None:
    from loraxs_search.cli._live import in_notebook

    assert not in_notebook()


def test_a_view_and_progress_exclude_one_another() -> None:
    for verb in (loraxs_search.launch, loraxs_search.resume):
        with pytest.raises(UsageError, match="`progress` must go without a `view`"):
            verb("movie_reviews", progress=True, view=loraxs_search.search.SilentView())

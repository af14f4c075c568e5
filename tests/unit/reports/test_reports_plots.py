"""Quality against bytes, drawn in a terminal and into a file."""

from __future__ import annotations

from dataclasses import replace

import pytest
from matplotlib.colors import rgb_to_hsv
from matplotlib.image import imread
from support.searched_studies import Tried, confirm, searched
from support.studies import TASK

from loraxs_search.errors import HomeError
from loraxs_search.reports import compare
from loraxs_search.reports.png_plot import save_png
from loraxs_search.reports.text_plot import text_plot


def tried(method, score, stored_bytes):
    return Tried({"method": method}, score, stored_bytes)


TRIALS = [
    tried("lora-xs", 0.5, 100),
    tried("lora", 0.9, 10_000),
    tried("lora-xs", 0.7, 1000),
    tried("lora", 0.7, 10_000),
]


@pytest.fixture
def comparison(fresh_home):
    confirm(searched("s", TRIALS), "00002", [0.7, 0.6])
    return compare(["s"])


def test_the_best_are_on_top_and_the_smallest_on_the_left(comparison):
    legend, *field = text_plot(comparison)
    assert legend == "accuracy of a lora-xs   b lora   (capitals: the best for their size)"
    assert field[0] == f"  0.9000 │{' ' * 63}B"
    assert field[8] == f"{' ' * 9}│{' ' * 31}A{' ' * 31}b"
    assert field[15] == "  0.5000 │A"
    assert field[-1].split() == ["100", "10,000", "bytes"]


def test_where_less_is_better_less_is_on_top(fresh_home):
    searched("s", TRIALS, task=replace(TASK, metric="mse", direction="minimize"))
    _, *field = text_plot(compare(["s"]))
    assert field[0].startswith("  0.5000 │A")
    assert field[15].startswith("  0.9000 │")


def test_groups_in_one_place_share_a_star(fresh_home):
    searched("s", [tried("lora-xs", 0.5, 100), tried("lora", 0.5, 100)])
    assert "*" in "".join(text_plot(compare(["s"])))


def test_where_nothing_is_complete_nothing_is_drawn_in_a_terminal(comparison):
    assert text_plot(compare(["s"], max_bytes=1)) == []


@pytest.mark.parametrize("max_bytes", [None, 1])
def test_a_figure_is_a_whole_png(comparison, tmp_path, max_bytes):
    path = tmp_path / "new" / "figure.png"
    save_png(compare(["s"], max_bytes=max_bytes), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert imread(path).shape == (550, 1210, 4)
    assert [p.name for p in path.parent.iterdir()] == ["figure.png"]


def test_the_same_comparison_gives_the_same_file(comparison, tmp_path):
    for name in ("a.png", "b.png"):
        save_png(comparison, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_every_group_is_drawn(comparison, tmp_path):
    save_png(comparison, tmp_path / "two.png")
    save_png(replace(comparison, groups=comparison.groups[:1]), tmp_path / "one.png")
    assert _colors(tmp_path / "two.png") > _colors(tmp_path / "one.png")


def test_a_file_that_cannot_be_written_says_so(comparison, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeError, match="must be writable"):
        save_png(comparison, tmp_path / "file" / "figure.png")


def _colors(path):
    """Count a figure's hues."""
    hues, saturations, _ = rgb_to_hsv(imread(path)[..., :3]).reshape(-1, 3).T
    return len({int(hue * 16) for hue in hues[saturations > 0.25]})

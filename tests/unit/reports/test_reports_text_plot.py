"""Quality against bytes, drawn in a terminal."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.searched_studies import Tried, confirm, searched
from support.studies import TASK

from loraxs_search.cli.report import text_plot
from loraxs_search.reports.comparison import compare


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
    return compare("s")


def test_the_best_are_on_top_and_the_smallest_on_the_left(comparison):
    legend, *field = text_plot(comparison)
    assert legend == "accuracy of a lora-xs   b lora   (capitals: the best for their size)"
    assert field[0] == f"  0.9000 │{' ' * 63}B"
    assert field[8] == f"{' ' * 9}│{' ' * 31}A{' ' * 31}b"
    assert field[15] == "  0.5000 │A"
    assert field[-1].split() == ["100", "10,000", "bytes"]


def test_where_less_is_better_less_is_on_top(fresh_home):
    searched("s", TRIALS, task=replace(TASK, metric="mse", direction="minimize"))
    _, *field = text_plot(compare("s"))
    assert field[0].startswith("  0.5000 │A")
    assert field[15].startswith("  0.9000 │")


def test_groups_in_one_place_share_a_star(fresh_home):
    searched("s", [tried("lora-xs", 0.5, 100), tried("lora", 0.5, 100)])
    assert "*" in "".join(text_plot(compare("s")))


def test_where_nothing_is_complete_nothing_is_drawn_in_a_terminal(comparison):
    assert text_plot(compare("s", max_bytes=1)) == []

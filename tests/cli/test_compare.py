"""`compare` from the command line and from Python, on studies that were never run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.searched_studies import Tried, confirm, searched
from support.studies import TASK

from loraxs_search.cli.report import text_plot
from loraxs_search.reports.comparison import compare


@pytest.fixture
def studies(fresh_home):
    """Studies of two methods, both confirmed."""
    xs = searched("xs", [Tried({"rank": 4}, 0.7, 500, 50), Tried({"rank": 8}, 0.8, 1000, 100)])
    lora = searched("lora", [Tried({"rank": 4}, 0.8, 10_000, 1000)] * 2, space="method: lora\n")
    confirm(xs, "00001", [0.8, 0.7, 0.75], [0] * 40, [0, 1] * 20)
    confirm(lora, "00000", [0.8, 0.81, 0.79], [0, 1] * 20, [0, 1] * 20)
    return xs, lora


def test_a_line_a_group_and_the_plot_below(say, studies):
    said = say("compare", "xs", "lora")
    heading, first, second, empty, legend, *_ = said.ok.splitlines()
    assert heading.split() == [
        *("method", "trials", "steps", "best", "accuracy", "over", "seeds", "test", "accuracy", "gain", "p", "by"),
        *("R", "bytes"),
    ]
    assert first.split()[:6] == ["lora-xs", "2", "of", "2", "40", "xs/00001"]
    assert first.split()[6:11] == ["0.8000", "0.7500", "±", "0.0500", "0.5000"]
    assert first.split()[11:] == ["-", "-", "-", "100", "1,000"]
    assert second.split()[11:] == ["+0.5000", "1.91e-06", "rows", "1,000", "10,000"]
    assert (empty, legend.startswith("accuracy of a lora-xs   b lora")) == ("", True)
    few = "a search tries bad values less often; launch a study for each method"
    assert f"note: 2 trials of each group are few: {few}\n" in said.err
    (none,) = (line for line in said.err.splitlines() if line.startswith("no importances of xs: "))
    assert none.removeprefix("no importances of xs: ").startswith("they need ")
    assert "no importances of lora: " in said.err.partition(none)[2].splitlines()[1]


def test_what_a_seed_gives_back_is_counted_apart(say, fresh_home):
    searched("s", [Tried({"method": "vera"}, 0.7, 5000, without_projection=900), Tried({}, 0.7)])
    heading, vera, own = say("compare", "s").ok.splitlines()[:3]
    assert "bytes  learnt bytes" in heading
    assert vera.split()[-2:] == ["5,000", "900"]
    assert own.split()[-2:] == ["1,000", "-"]


def test_json_has_all_numbers_and_nothing_else_on_stdout(say, studies):
    comparison = json.loads(say("compare", "xs", "lora", "--by", "rank", "--against", "8", "--json").ok)
    assert [(group["value"], group["num_trials"]) for group in comparison["groups"]] == [(8, 1), (4, 3)]
    assert (comparison["budget"], comparison["studies"]) == (1, {"xs": "finished", "lora": "finished"})
    assert comparison["notes"]


@pytest.mark.parametrize(
    ("line", "code", "parts"),
    [
        (["compare", "xs", "--by", "rnk"], 2, ("`--by` must be one of: rank, method, study, but got 'rnk'.",)),
        (["compare", "xs", "--max-bytes", "0"], 2, ("`--max-bytes` must be at least 1, but got '0'.",)),
    ],
)
def test_a_request_that_cannot_be_met(say, studies, line, code, parts):
    assert say(*line).is_error(code, *parts)


# ---- the plot --------------------------------------------------------------------------------------------------------
def test_the_best_are_on_top_and_the_smallest_on_the_left(fresh_home):
    tried = [("lora-xs", 0.5, 100), ("lora", 0.9, 10_000), ("lora-xs", 0.7, 1000), ("lora", 0.7, 10_000)]
    trials = [Tried({"method": method}, score, size) for method, score, size in tried]
    searched("s", trials)
    legend, *field = text_plot(compare("s"))
    assert legend == "accuracy of a lora-xs   b lora   (capitals: the best for their size)"
    assert field[0] == f"  0.9000 │{' ' * 63}B"
    assert field[8] == f"{' ' * 9}│{' ' * 31}A{' ' * 31}b"
    assert field[15] == "  0.5000 │A"
    assert field[-1].split() == ["100", "10,000", "bytes"]
    assert text_plot(compare("s", max_bytes=1)) == [], "nothing is complete"
    less = [Tried({"method": "lora"}, 0.5, 100), *trials[:3]]
    searched("less", less, task=replace(TASK, metric="mse", direction="minimize"))
    _, *field = text_plot(compare("less"))
    assert field[0].startswith("  0.5000 │*"), "two groups in one place"
    assert field[15].startswith("  0.9000 │")

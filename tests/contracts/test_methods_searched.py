"""Methods in spaces and in whole searches: the package's own, and one from outside of it, a toy."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.shell import Shell

from loraxs_search.errors import UsageError
from loraxs_search.search_space.load import load_space
from loraxs_search.search_space.space import notes

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.usefixtures("toy_method")]


# ---- a search --------------------------------------------------------------------------------------------------------
PARAMETERS = """parameters:
  rank: {choice: [2, 4]}
  side: {choice: [input, output]}
  learning_rate:
    - {log_uniform: [1.0e-2, 5.0e-2], when: {method: lora-xs}}
    - {log_uniform: [1.0e-3, 5.0e-3]}
  batch_size: 8
"""
SEARCH = ("search.pack_size=3", "search.trials=6", "search.scheduler=none", "promotion.methods=[toy-ia3]")
NOTE = "trials of method toy-ia3 cannot share passes: each trains alone, beside the packs of the others"


@pytest.mark.slow
@pytest.mark.long(part="search")
def test_a_method_from_outside_searches_beside_one_of_ours_is_promoted_pulled_and_predicts(shell, tiny_space):
    text = tiny_space.read_text()
    head, tail = text[: text.index("parameters:")], text[text.index("search:") :]
    tiny_space.write_text(f"{head}method: {{choice: [lora-xs, toy-ia3]}}\n{PARAMETERS}{tail}")
    check_described(shell, str(tiny_space))
    done = shell.run("launch", str(tiny_space), "--name", "two", *(part for it in SEARCH for part in ("--set", it)))
    assert done.returncode == 0, done.stderr
    check_searched(shell, done)
    shell.ok("promote", "two", "--force")
    check_pulled(shell, Path(shell.ok("pull", "tiny-reviews").strip()))


def check_described(shell: Shell, space: str) -> None:
    """What `check` says of the toy alone, and of both methods."""
    alone = ("method=toy-ia3", "parameters={side: {choice: [input, output]}, learning_rate: 1.0e-2, batch_size: 8}")
    checked = shell.ok("check", space, "--data", *(part for it in alone for part in ("--set", it)))
    assert "method      Toy IA3\n" in checked
    assert "pack size   auto: 1 at once on this machine (trials of method toy-ia3 cannot share passes)" in checked
    checked = shell.ok("check", space, "--data")
    assert "method      LoRA-XS, Toy IA3\n" in checked
    assert f"note        {NOTE}\n" in checked
    assert re.search(r"^adapter +method +rank +side +modules +parameters +head +bytes$", checked, re.MULTILINE)
    shape = r"^(?:smallest|largest) +(?:lora-xs +[24] +-|toy-ia3 +- +(?:in|out)put) "
    assert len(re.findall(shape, checked, re.M)) == 4
    as_data = json.loads(shell.ok("check", space, "--data", "--json"))
    assert as_data["description"]["notes"] == [NOTE]
    assert as_data["description"]["methods"].keys() == {"lora-xs", "toy-ia3"}


def check_searched(shell: Shell, done: subprocess.CompletedProcess[str]) -> None:
    """Both methods were trained, each with its own params, and both are in the table."""
    assert done.stderr.count(NOTE) == 1
    columns = done.stdout.splitlines()[0]
    assert {"method", "parameters", "rank", "side"} <= set(columns.split())
    assert columns.split().index("method") < columns.split().index("learning_rate")
    trials = json.loads(shell.ok("status", "two", "--json"))["trials"]
    assert {trial["state"] for trial in trials} == {"COMPLETE"}
    assert {trial["params"]["method"] for trial in trials} == {"lora-xs", "toy-ia3"}
    for trial in trials:
        own = {"lora-xs": "rank", "toy-ia3": "side"}[trial["params"]["method"]]
        assert trial["params"].keys() == {"method", "learning_rate", "batch_size", own}


def check_pulled(shell: Shell, folder: Path) -> None:
    """The champion is the toy's, whole, and answers."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["params"]["method"], manifest["hyperparameters"]["method"]) == ("toy-ia3", "toy-ia3")
    assert manifest["factors"] == {}
    assert manifest["hyperparameters"]["method_params"] == {"side": manifest["params"]["side"]}
    assert manifest["size"]["stored_bytes"] == (folder / "adapter_model.safetensors").stat().st_size
    assert all("ia3_l" in name or "classifier" in name for name in load_file(folder / "adapter_model.safetensors"))
    assert "Toy IA3 adapter for `" in (folder / "README.md").read_text()
    predictions = json.loads(shell.ok("predict", "tiny-reviews", "a fine film", "--json"))
    assert predictions[0]["label"] in ("negative", "positive")
    refused = shell.run("pull", "tiny-reviews", "--format", "lora")
    assert refused.returncode == 2
    assert (
        "`--format` must be one of: native, merged for an adapter of method toy-ia3, but got 'lora'." in refused.stderr
    )


# ---- baselines ------------------------------------------------------------------------------------------------------
def test_baselines_are_candidates_only_where_the_rule_names_them():
    methods = "method={choice: [lora-xs, full, head-only]}"
    parameters = "parameters={rank: 4, learning_rate: 1.0e-3}"
    space = load_space("movie_reviews", overrides=[methods, parameters])
    assert [space.may_be_candidate(name) for name in space.methods] == [True, False, False]
    assert "method full trains a copy of the base" in notes(space)[0]
    named = load_space("movie_reviews", overrides=[methods, parameters, "promotion.methods=[head-only]"])
    assert [named.may_be_candidate(name) for name in named.methods] == [False, False, True]
    for given, message in {
        "[full]": "promotion.methods: must have adapters, but of full only metrics are recorded.",
        "[vera]": "promotion.methods: must be among the space's methods: ",
        "[lora-xs, lora-xs]": "promotion.methods: must name each once",
        "7": "promotion.methods: must be a list, but got 7.",
    }.items():
        with pytest.raises(UsageError) as caught:
            load_space("movie_reviews", overrides=[methods, parameters, f"promotion.methods={given}"])
        assert message in caught.value.message

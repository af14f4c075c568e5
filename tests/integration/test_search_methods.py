"""One search over methods that share passes, that train alone, and that are only there to be compared with."""

from __future__ import annotations

import json

import pytest

from loraxs_search.records.trial import TrialState
from loraxs_search.registry.manifest import verify
from loraxs_search.studies.folder import StudyFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
METHODS = ("lora-xs", "vera", "full", "head-only")
SPACE = f"""method: {{choice: [{", ".join(METHODS)}]}}
peft_methods: {{vera: {{peft_type: VERA}}}}
parameters:
  rank: {{choice: [2, 4]}}
  r: {{choice: [2, 4]}}
  learning_rate:
    - {{value: 1.0e-4, when: {{method: full}}}}
    - {{log_uniform: [1.0e-3, 1.0e-2]}}
  batch_size: 8
"""


@pytest.mark.long(part="search")
def test_baselines_are_compared_and_no_candidates(search, tiny_space, agree):
    text = tiny_space.read_text()
    tiny_space.write_text(text[: text.index("parameters:")] + SPACE + text[text.index("search:") :])
    plan = ("search.trials=10", "search.scheduler=none", "search.pack_size=3")
    result = search("methods", *plan, "promotion.seeds=1", "promotion.candidates=2")
    agree("methods", 10)
    folder = StudyFolder.open("methods")
    by_method: dict[str, list[str]] = {name: [] for name in METHODS}
    for record in result.trials:
        assert record.state is TrialState.COMPLETE
        by_method[str(record.params["method"])].append(record.trial_id)
    assert all(by_method.values()), "each method has a trial"
    may = {*by_method["lora-xs"], *by_method["vera"]}
    assert {candidate.trial_id.partition(".")[0] for candidate in result.candidates} <= may
    assert len(result.candidates) == 4
    for name, trials in by_method.items():
        for trial_id in trials:
            snapshot = folder.snapshots.read(trial_id)
            assert snapshot is not None and (len(snapshot) < 1_000_000)
            if name == "full":
                assert not folder.adapter_path(trial_id).exists(), "only its metrics are recorded"
            else:
                size = verify(folder.adapter_path(trial_id)).size
                assert (size.without_projection is not None) == (name == "vera")
    manifest = json.loads((folder.adapter_path(by_method["head-only"][0]) / "manifest.json").read_text())
    assert manifest["size"]["r_parameters"] == 0 < manifest["size"]["head_parameters"]

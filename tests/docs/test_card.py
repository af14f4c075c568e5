"""An adapter's card cannot drift: the code in it runs, without the hub."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.sealed import seal
from support.spaces import QUICKSTART

import loraxs_search
from loraxs_search.base_model import locate
from loraxs_search.records import BaseModelRef, Candidate, PromotionRule
from loraxs_search.registry import Registry, model_card, verify

RUN = """
import json, os, sys
for folder, code in json.loads(sys.argv[1]):
    os.chdir(folder)
    exec(code, space := {})
    model, tokenizer = space["model"], space["tokenizer"]
    answer = model.config.id2label[int(model(**tokenizer("so so", return_tensors="pt")).logits.argmax())]
    print(json.dumps([model.config.id2label, model.config.label2id, answer]))
"""


@pytest.fixture
def pulled(make_adapter, store_uri, tmp_path, warm_home, monkeypatch) -> Callable[[BaseModelRef, int], Path]:
    """Promote an adapter with a number of labels and pull it: a folder with its card."""

    def pull(ref: BaseModelRef, num_labels: int) -> Path:
        with monkeypatch.context() as patch:
            patch.setenv("LORAXS_HOME", str(warm_home))  # where the base is unpacked
            folder = tmp_path / f"made-{num_labels}"
            made = make_adapter(folder, locate(ref), num_labels=num_labels, rank=2, target_modules=("query",))
        manifest = replace(verify(made), base_model=ref)
        (made / "README.md").write_text(model_card(manifest))
        seal(made, manifest)
        scores = {"accuracy": 0.9}
        candidate = Candidate("s", "0", manifest.task.name, scores, scores, 100, "", manifest.base_digest)
        Registry(store_uri).promote(PromotionRule(), manifest.task, [candidate], {"0": made}, True)
        return loraxs_search.pull(manifest.task.name)

    return pull


@pytest.mark.slow
def test_both_of_its_codes_run_without_the_hub(pulled, tiny_base, store_uri, warm_home):
    """The first wherever the base is; the second, of PEFT alone, where the base is a folder."""
    cards = [pulled(BaseModelRef(**QUICKSTART), 2), pulled(BaseModelRef(str(tiny_base)), 3)]
    blocks = [re.findall(r"```python\n(.*?)```", (card / "README.md").read_text(), flags=re.S) for card in cards]
    runs = [(str(card), code[number]) for number, (card, code) in enumerate(zip(cards, blocks, strict=True))]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(runs)],
        env=os.environ | {"LORAXS_HOME": str(warm_home), "MLFLOW_TRACKING_URI": store_uri},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line, num_labels in zip(done.stdout.splitlines(), (2, 3), strict=True):
        names, numbers, answer = json.loads(line)
        assert names == {str(number): f"label {number}" for number in range(num_labels)}
        assert numbers == {f"label {number}": number for number in range(num_labels)}
        assert answer in numbers

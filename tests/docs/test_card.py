"""An adapter's card cannot drift: the code in it runs, without the hub."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.sealed import promote, seal
from support.spaces import QUICKSTART

import loraxs_search
from loraxs_search.base_model.locate import locate
from loraxs_search.manifest import verify
from loraxs_search.records.task import BaseModelRef
from loraxs_search.registry.card import model_card


@pytest.fixture
def pulled(make_adapter, store_uri, tmp_path, warm_home, monkeypatch):
    """Promote an adapter with a number of labels and pull it: a folder with its card."""

    def pull(ref: BaseModelRef, num_labels: int) -> Path:
        with monkeypatch.context() as patch:
            patch.setenv("LORAXS_HOME", str(warm_home))  # where the base is unpacked
            folder = tmp_path / f"made-{num_labels}"
            made = make_adapter(folder, locate(ref), num_labels=num_labels, rank=2, target_modules=("query",))
        manifest = replace(verify(made), base_model=ref)
        (made / "README.md").write_text(model_card(manifest))
        seal(made, manifest)
        return loraxs_search.pull(promote(made, store_uri))

    return pull


@pytest.mark.slow
def test_both_of_its_codes_run_without_the_hub(pulled, tiny_base, store_uri, warm_home, monkeypatch):
    """The first wherever the base is; the second, of PEFT alone, where the base is a folder."""
    cards = [pulled(BaseModelRef(**QUICKSTART), 2), pulled(BaseModelRef(str(tiny_base)), 3)]
    blocks = [re.findall(r"```python\n(.*?)```", (card / "README.md").read_text(), flags=re.S) for card in cards]
    monkeypatch.setenv("LORAXS_HOME", str(warm_home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    for number, (card, code, num_labels) in enumerate(zip(cards, blocks, (2, 3), strict=True)):
        monkeypatch.chdir(card)
        exec(code[number], space := {})
        model, tokenizer = space["model"], space["tokenizer"]
        answer = model.config.id2label[int(model(**tokenizer("so so", return_tensors="pt")).logits.argmax())]
        assert model.config.id2label == {label: f"label {label}" for label in range(num_labels)}
        assert model.config.label2id == {f"label {label}": label for label in range(num_labels)}
        assert answer in model.config.label2id

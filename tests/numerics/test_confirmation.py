"""What a host confirms is what others find when they load the files: scores, answers row by row, and the factors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from peft import PeftModel
from support.sealed import manifest_of, seal
from transformers import AutoModelForSequenceClassification

from loraxs_search.errors import BaseModelError, TaskDataError
from loraxs_search.home import factor_path
from loraxs_search.packing.host import TrialHost
from loraxs_search.records.base import BaseModelRef
from loraxs_search.registry.factor_sets import factors_at
from loraxs_search.search.driver.finalize import refit_spec
from loraxs_search.search.driver.work_items import joined
from loraxs_search.trial.evaluate import score_folder


@pytest.fixture
def confirmed(world):
    host = TrialHost(BaseModelRef(id=world.base.path), world.data.task, precision="float32", device="cpu")
    spec = world.spec("7", learning_rate=0.05)
    _, snapshot = host.advance(spec, 6, None)
    return spec, host.confirm(spec, snapshot), host


@pytest.fixture
def scores(world, confirmed):
    """Metrics and answers on the test split, in two parts as two hosts give them."""
    spec, _, host = confirmed
    _, snapshot = host.advance(spec, 6, None)
    num_rows = world.data.num_rows("test")
    parts = [host.answer(spec, snapshot, rows) for rows in (range(5), range(5, num_rows))]
    return joined(parts, world.data.task)


@pytest.fixture
def folder(world, confirmed, tmp_path):
    spec, confirmation, host = confirmed
    made = tmp_path / "adapter"
    made.mkdir()
    for name, content in confirmation.files.items():
        (made / name).write_bytes(content)
    size, digest = host.advance(spec, 6, None)[0].size, host.info().base.weight_digest
    known = {"base_digest": digest, "data_fingerprint": world.data.data_fingerprint, "size": size}
    ref, hyper = BaseModelRef(world.base.path), spec.hyperparameters
    manifest = manifest_of(world.data.task, ref, hyper, spec.trial_id, probe=confirmation.probe, **known)
    seal(made, manifest)
    return made


def test_answers_come_in_test_order_and_add_up_to_the_score(world, scores):
    metrics, rows = scores
    np.testing.assert_array_equal(rows.labels, world.data.labels("test"))
    assert metrics["accuracy"] == pytest.approx(np.mean(rows.predictions == rows.labels))


def test_a_folder_scored_anew_gives_the_same_answers(world, scores, folder):
    metrics, rows = scores
    anew = score_folder(folder, world.data.task)
    assert anew.metrics == pytest.approx(metrics, rel=1e-6)
    said = anew.answers
    assert len(said.wrong) == min(20, np.sum(rows.predictions != rows.labels))
    assert all(sample.reference != sample.answer and sample.prompt for sample in said.wrong)
    assert (said.predictions, said.labels) == (tuple(rows.predictions.tolist()), tuple(rows.labels.tolist()))
    assert anew.data_fingerprint == world.data.data_fingerprint
    assert anew.test_fingerprint == world.data.test_fingerprint
    other = dataclasses.replace(world.data.task, labels=("x", "y"))
    with pytest.raises(TaskDataError, match="labels"):
        score_folder(folder, other)


def test_the_factors_it_names_are_those_on_disk(confirmed):
    spec, confirmation, host = confirmed
    assert len(confirmation.factors) == len(spec.hyperparameters.target_modules)
    for key, checksum in confirmation.factors.items():
        assert factors_at(key, checksum, unchecked=True)
        assert host.factor_file(key) == factor_path(key).read_bytes()


def test_a_refit_differs_in_its_seed_alone(world):
    spec = world.spec("7")
    refits = [refit_spec(spec, number) for number in (1, 2)]
    assert [refit.trial_id for refit in refits] == ["7.1", "7.2"]
    assert len({spec.hyperparameters.seed, *(refit.hyperparameters.seed for refit in refits)}) == 3
    for refit in refits:
        assert dataclasses.replace(refit.hyperparameters, seed=spec.hyperparameters.seed) == spec.hyperparameters


def test_the_files_tell_their_base_also_where_peft_alone_loads_them(world, folder):
    base, same = (AutoModelForSequenceClassification.from_pretrained(world.base.path, num_labels=2) for _ in range(2))
    PeftModel.from_pretrained(same, str(folder))
    base.base_model.get_input_embeddings().weight.data.mul_(1.01)
    with pytest.raises(BaseModelError, match="fingerprint"):
        PeftModel.from_pretrained(base, str(folder))

from __future__ import annotations

import pytest

from loraxs_search.errors import UsageError
from loraxs_search.records.task import LinearModule
from loraxs_search.records.trial import AdapterSize, Hyperparameters
from loraxs_search.search_space.load import load_space
from loraxs_search.search_space.space import ShapeDescription, describe

OWN = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")


def bert(num_layers, width):
    """The linear layers of a BERT-like model."""
    sides = dict.fromkeys(OWN, (width, width))
    sides |= {"intermediate.dense": (width, 4 * width), "output.dense": (4 * width, width)}
    names = [(f"bert.encoder.layer.{i}.{own}", *size) for i in range(num_layers) for own, size in sides.items()]
    return tuple(LinearModule(*module) for module in names)


MINI = bert(6, 384)
SPACE = "task: sst2\nbase_model: a/b\nparameters:\n  learning_rate: 1e-3\n"


# ---- hyperparameters -------------------------------------------------------------------------------------------------
def test_params_become_hyperparameters_with_the_records_defaults(parse):
    space = parse(SPACE + "  rank: {choice: [4, 100]}\nsearch: {max_steps: 80}\n")
    assert space.hyperparameters({"rank": 4, "learning_rate": 1e-3}, MINI, 7) == Hyperparameters(
        rank=4,
        target_modules=tuple(module.name for module in MINI),
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        max_steps=80,
        seed=7,
        factor_rank=128,
        head_init="probe",  # studies of before have none, and start at random
    )


def test_every_parameter_reaches_the_hyperparameters(parse):
    given = {"rank": 8, "scale": 2.0, "sigma": "sqrt", "basis": "gaussian", "head": "output", "head_init": "random"}
    given |= {"init_std": 1e-4, "learning_rate": 1e-3, "head_learning_rate": 2e-3, "weight_decay": 0.1}
    given |= {"adam_beta1": 0.8, "adam_beta2": 0.98, "lr_schedule": "cosine", "warmup_ratio": 0.5}
    given |= {"max_grad_norm": 0.0, "batch_size": 4}
    made = parse(SPACE + "  rank: 8\n").hyperparameters(given | {"target_modules": "ffn@last-1"}, MINI, 0)
    assert {name: getattr(made, name) for name in given} == given
    assert made.target_modules == ("bert.encoder.layer.5.intermediate.dense", "bert.encoder.layer.5.output.dense")


def test_a_rank_or_group_that_does_not_fit_the_model_is_refused(parse):
    space = parse(SPACE + "  rank: {int: [4, 500]}\n")
    with pytest.raises(UsageError, match=r"1\.\.384, .*rank=500 for bert\.encoder\.layer\.0\."):
        space.hyperparameters({"rank": 500, "learning_rate": 1e-3}, MINI, 0)
    with pytest.raises(UsageError, match="'q_proj'"):
        space.hyperparameters({"rank": 4, "learning_rate": 1e-3, "target_modules": "q_proj"}, MINI, 0)
    with pytest.raises(UsageError, match="rank=500"):
        describe(space, MINI)


# ---- describe --------------------------------------------------------------------------------------------------------
def test_the_quickstart_is_described(parse):
    head = {"classifier.weight": (2, 384), "classifier.bias": (2,)}
    described = describe(load_space("movie_reviews"), MINI, heads={"full": head})

    assert described.combinations is None
    assert {group.expression: len(group.modules) for group in described.groups} == {
        "attention": 24,
        "ffn": 12,
        "all-linear": 36,
    }
    assert described.smallest == ShapeDescription({"rank": 4}, "ffn", "full", AdapterSize(12 * 16, 770, 5512))
    assert described.largest == ShapeDescription({"rank": 16}, "all-linear", "full", AdapterSize(9216, 770, 44808))


def test_a_space_may_choose_the_head(parse):
    space = parse(SPACE + "  rank: 4\n  head: {choice: [full, output]}\n")
    heads = {"full": {"dense": (32, 32), "out": (2, 32)}, "output": {"out": (2, 32)}}
    described = describe(space, MINI, heads=heads)
    assert (described.smallest.head, described.smallest.size.head_parameters) == ("output", 64)
    assert (described.largest.head, described.largest.size.head_parameters) == ("full", 1088)


def test_the_extremes_are_those_a_trial_can_reach(parse):
    space = parse(
        SPACE
        + "  rank: [{int: [4, 64], when: {target_modules: ffn}}, 8]\n"
        + "  target_modules: {choice: [attention, ffn, all-linear]}\n"
    )
    described = describe(space, MINI)
    assert (described.smallest.params["rank"], described.smallest.target_modules) == (4, "ffn")
    assert (described.largest.params["rank"], described.largest.target_modules) == (64, "ffn")
    assert described.combinations == 61 + 2


def test_only_ranks_that_meet_a_module_are_held_against_it(parse):
    modules = (*bert(1, 64), LinearModule("bert.encoder.layer.0.attention.tiny", 64, 2))
    fits = "  rank: {choice: [2, 16]}\n  target_modules: [{value: tiny, when: {rank: 2}}, {value: ffn}]\n"
    assert describe(parse(SPACE + fits), modules).largest.params == {"rank": 16}
    with pytest.raises(UsageError, match=r"1\.\.2, .*rank=16 for .*tiny"):
        describe(parse(SPACE + fits.replace("rank: 2}", "rank: 16}")), modules)


def test_a_limit_in_bytes_that_no_adapter_meets_is_refused_and_one_that_some_meet_is_noted(parse):
    """Such a search would train everything and promote nothing."""
    written = SPACE + "  rank: {choice: [4, 100]}\n"
    described = describe(parse(written), MINI)
    smallest, largest = described.smallest.size.stored_bytes, described.largest.size.stored_bytes
    assert not described.notes
    with pytest.raises(
        UsageError, match=rf"promotion\.max_bytes: .* takes {smallest:,} bytes, but got {smallest - 1:,}"
    ):
        describe(parse(f"{written}promotion: {{max_bytes: {smallest - 1}}}\n"), MINI)
    (note,) = describe(parse(f"{written}promotion: {{max_bytes: {largest - 1}}}\n"), MINI).notes
    assert f"max_bytes={largest - 1:,} are never promoted" in note
    assert not describe(parse(f"{written}promotion: {{max_bytes: {largest}}}\n"), MINI).notes

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from loraxs_search.tasks.encoded import TrainingBatches, eval_batches

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=200).map(lambda values: np.array(values, dtype=np.int32))
sizes = st.integers(1, 50)
# Written by this code with numpy 2; a stored trial is resumed by this plan, so it may not change.
GOLDEN = [0, 53, 28, 95, 5, 45, 33, 20]
seeds = st.integers(-3, 2**63 - 1)


def epoch_batches(rows, size, seed, epoch):
    batches, count = TrainingBatches(rows, size, seed), -(-len(rows) // size)
    return [batches.at(epoch * count + number) for number in range(count)]


@given(lengths, sizes, seeds, st.integers(0, 1000))
def test_an_epoch_has_every_row_once_and_at_most_one_short_batch(rows, size, seed, epoch):
    batches = epoch_batches(rows, size, seed=seed, epoch=epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(rows)))
    assert sorted((len(batch) for batch in batches), reverse=True)[:-1] == [size] * (len(batches) - 1)


@given(lengths, st.integers(1, 200))
def test_evaluation_has_every_row_once_within_the_budget(rows, max_tokens):
    batches = eval_batches(rows, max_tokens)
    assert sorted(np.concatenate(batches)) == list(range(len(rows)))
    assert all(len(batch) == 1 or len(batch) * rows[batch].max() <= max_tokens for batch in batches)
    ordered = rows[np.concatenate(batches)]
    assert (np.diff(ordered) <= 0).all()
    assert [len(batch) for batch in eval_batches(np.full(64, 30, np.int32), 4096)] == [64], "rows alike"


def test_the_plan_is_the_same_for_ever():
    assert TrainingBatches(np.arange(100, dtype=np.int32) % 13 + 1, 8, 7).at(30).tolist() == GOLDEN


def test_like_lengths_are_batched_together_and_length_does_not_decide_when_a_row_is_seen():
    rows = np.random.default_rng(0).integers(5, 60, size=4000).astype(np.int32)
    batches = epoch_batches(rows, 16, seed=0, epoch=0)
    assert sum(len(batch) * int(rows[batch].max()) for batch in batches) < 1.1 * rows.sum()
    assert abs(rows[np.concatenate(batches[:125])].mean() / rows.mean() - 1) < 0.15


def test_trials_of_any_seed_have_batches_of_like_length_at_the_same_step():
    rows = np.random.default_rng(0).integers(5, 60, size=4000).astype(np.int32)
    longest = [[int(rows[batch].max()) for batch in epoch_batches(rows, 16, seed=seed, epoch=1)] for seed in range(4)]
    assert np.ptp(longest, axis=0).mean() < 2
    assert np.ptp(longest, axis=1).min() > 40

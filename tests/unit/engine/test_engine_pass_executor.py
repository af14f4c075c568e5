"""Passes side by side: who computes what, in which order results come, and what a fault does."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from loraxs_search.engine.planning import Pass, PassExecutor, Share, workers_for


def a_pass(width: int) -> Pass:
    return Pass(width, (Share("trial", np.arange(1)),))


PASSES = [a_pass(width) for width in (9, 1, 5, 5, 3)]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_results_come_in_the_order_of_the_passes(count: int) -> None:
    assert PassExecutor(count).run(PASSES, lambda worker, shared: shared.width) == [9, 1, 5, 5, 3]


def test_a_pass_goes_to_the_worker_with_least_to_do_whatever_the_timing() -> None:
    executor = PassExecutor(2)
    assert [executor.run(PASSES, lambda worker, shared: worker) for _ in range(3)] == [[0, 1, 1, 1, 0]] * 3


def test_a_worker_is_one_thread_with_its_own_number_of_threads() -> None:
    before = torch.get_num_threads()
    executor = PassExecutor(2, threads=1)
    names = executor.run(PASSES, lambda worker, shared: (threading.current_thread().name, torch.get_num_threads()))
    assert {threads for _, threads in names} == {1}
    assert torch.get_num_threads() == before


def test_a_fault_is_raised_once_all_workers_are_done() -> None:
    finished = threading.Event()

    def compute(worker: int, shared: Pass) -> None:
        if worker == 0:
            raise ZeroDivisionError
        if shared is PASSES[-2]:
            finished.set()

    with pytest.raises(ZeroDivisionError):
        PassExecutor(2).run(PASSES, compute)
    assert finished.is_set()


def test_an_accelerator_has_one_worker() -> None:
    assert workers_for(torch.device("cuda")) == (1, 1)
    count, threads = workers_for(torch.device("cpu"))
    assert 1 <= count * threads <= torch.get_num_threads()

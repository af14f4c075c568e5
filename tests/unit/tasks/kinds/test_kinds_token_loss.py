"""Losses of learnt tokens: those of plain cross entropy, with logits of a chunk at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from loraxs_search.tasks.encoded import Batch
from loraxs_search.tasks.kinds import PassOutputs, _token_loss
from loraxs_search.tasks.kinds._token_loss import token_losses

COUNTS = torch.tensor([5, 1, 4, 7])
M, WIDTH, VOCABULARY = 17, 6, 11
SOFT_CAP = 2.0


@pytest.fixture(autouse=True)
def few_rows_a_chunk(monkeypatch):
    """Four chunks, the last one of two reads."""
    monkeypatch.setattr(_token_loss, "CHUNK_BYTES", 5 * 4 * VOCABULARY)


def _batch():
    targets = torch.randint(VOCABULARY, (M,), generator=torch.Generator().manual_seed(1))
    return Batch({}, COUNTS, torch.zeros(M, 2, dtype=torch.int64), targets, M)


def _states(dtype):
    states = torch.randn(M, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return states.to(dtype).requires_grad_()


def _projection(dtype, cap=None):
    weight = 3 * torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at_least = torch.promote_types(dtype, torch.float32)

    def project(states):
        logits = (states @ weight.to(dtype).T).to(at_least)
        return torch.tanh(logits / cap) * cap if cap else logits

    return project


class _InTwoSteps:
    """The same projection as the bases have it."""

    def __init__(self, dtype, cap):
        self._dtype, self._cap, self._least = dtype, cap, torch.promote_types(dtype, torch.float32)
        self.sizes: list[int] = []

    def __call__(self, states):
        return self.finish(self.embed(states))

    def embed(self, states):
        return _projection(self._dtype)(states).to(self._dtype)

    def finish(self, embedded):
        self.sizes.append(len(embedded))
        logits = embedded.to(self._least)
        return torch.tanh(logits / self._cap) * self._cap if self._cap else logits


def _losses_and_gradient(states, losses):
    """Return losses and the gradient of their sum, each with its own weight."""
    weights = torch.linspace(-1, 2, M, dtype=losses.dtype)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), states)
    return losses.detach(), gradient


@pytest.mark.parametrize(("dtype", "tolerance", "cap"), [(torch.float32, 1e-6, SOFT_CAP), (torch.float64, 1e-12, None)])
def test_losses_and_gradients_are_those_of_plain_cross_entropy(dtype, tolerance, cap):
    batch, states, project = _batch(), _states(dtype), _projection(dtype, cap)
    plain = cross_entropy(project(states), batch.targets, reduction="none")
    expected = _losses_and_gradient(states, plain)
    losses, is_likeliest = token_losses(PassOutputs(states, project), batch)
    for actual, wanted in zip(_losses_and_gradient(states, losses), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)
    assert is_likeliest.tolist() == (project(states).argmax(-1) == batch.targets).tolist()
    assert 0 < is_likeliest.sum() < M
    assert not is_likeliest.requires_grad
    assert batch.row_sums(is_likeliest).dtype is torch.int64
    with torch.inference_mode():
        unlearnt, _ = token_losses(PassOutputs(states, project), batch)
    assert not unlearnt.requires_grad
    torch.testing.assert_close(unlearnt.clone(), losses.detach())


@pytest.mark.parametrize(("dtype", "cap", "tolerance"), [(torch.float32, None, 1e-6), (torch.bfloat16, SOFT_CAP, 1e-2)])
def test_in_two_steps_float32_logits_exist_for_a_block_alone(dtype, cap, tolerance, monkeypatch):
    monkeypatch.setattr(_token_loss, "_CPU_BLOCK_BYTES", 2 * 4 * VOCABULARY)
    batch, states, project = _batch(), _states(dtype), _InTwoSteps(dtype, cap)
    expected = _losses_and_gradient(states, cross_entropy(project(states), batch.targets, reduction="none"))
    project.sizes.clear()
    losses, _ = token_losses(PassOutputs(states, project), batch)
    assert max(project.sizes) == 2
    for actual, wanted in zip(_losses_and_gradient(states, losses), expected, strict=True):
        assert (actual - wanted).norm() <= tolerance * wanted.norm()


class _LargestTensor(TorchDispatchMode):
    """Sees every tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own form
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_logits_are_never_whole_forward_and_backward():
    batch, states, project = _batch(), _states(torch.float32), _projection(torch.float32)
    with _LargestTensor() as chunked:
        token_losses(PassOutputs(states, project), batch)[0].sum().backward()
    assert chunked.numbers <= max(_token_loss.CHUNK_BYTES // 4, M * WIDTH)

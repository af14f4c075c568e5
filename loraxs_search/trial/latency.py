"""The latency of an adapter: a batch with it, compared with the same batch through the bare base."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraxs_search.base_model import end_with_eos, head_names, load_model, load_tokenizer, locate
from loraxs_search.errors import LoraxsError
from loraxs_search.methods.loading import load_adapter_folder, read_manifest
from loraxs_search.records import Latency
from loraxs_search.tasks import kind_of
from loraxs_search.torch_threads import single_thread
from loraxs_search.trial.forward import forward

_ROWS, _TOKENS = 8, 64
_WARMUP, _MIN_ROUNDS, _MAX_ROUNDS = 2, 6, 24
_BUDGET_S = 20.0
_AGREEMENT = 0.05  # between two halves of the rounds


def measure_latency(folder: Path) -> Latency:
    """Time a batch with an adapter, as `load_adapter` returns it, and with the bare base, on this machine's CPU.

    The time is one thread's CPU time, not wall-clock time, which on a shared machine depends on the neighbours. Both
    take turns, and the shortest time of each counts, as the least disturbed: 24 rounds, or fewer where they take
    longer than 20 s in all. The result is valid if odd and even rounds agree within 5 %. Errors are in the result.
    """
    try:
        return _measure(folder)
    except LoraxsError as error:
        return Latency(failed=error.message)
    except Exception as error:  # noqa: BLE001  # an unknown base may raise anything: only this candidate fails
        reason = next(iter(str(error).strip().splitlines()), "no message")
        return Latency(failed=f"{type(error).__name__}: {reason}")


def _measure(folder: Path) -> Latency:
    manifest = read_manifest(folder)
    base = locate(manifest.base_model)
    adapted = load_adapter_folder(folder, base=base)
    bare = load_model(base, kind_of(manifest.task).model)
    draw = torch.Generator().manual_seed(0)
    num_tokens = min(_TOKENS, manifest.task.max_length, load_tokenizer(base).model_max_length)
    ids = end_with_eos(torch.randint(bare.config.vocab_size, (_ROWS, num_tokens), generator=draw), bare.config)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode(), single_thread():
        with_adapter, without = _in_turn(lambda: _answer(adapted, inputs), lambda: _answer(bare, inputs))
    return evaluate_rounds(with_adapter, without, num_tokens)


def _answer(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return each row's outputs; without a head, the logits after its last token, as when text is written."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if head_names(cast("PreTrainedModel", base)):
        return forward(model, inputs, None).read
    rows = torch.arange(len(inputs["input_ids"]))
    outputs = forward(model, inputs, torch.stack([rows, torch.full_like(rows, inputs["input_ids"].shape[1] - 1)], 1))
    assert outputs.project is not None  # there is no head
    return outputs.project(outputs.read)


def evaluate_rounds(with_adapter: Sequence[float], without: Sequence[float], num_tokens: int) -> Latency:
    """Return the latency from the times of rounds, (rounds,) seconds each."""
    halves = [min(with_adapter[start::2]) / min(without[start::2]) for start in (0, 1)]
    failed = ""
    if max(halves) > (1 + _AGREEMENT) * min(halves):
        ratios = " and ".join(f"{half:.3f}" for half in halves)
        failed = f"this machine was too busy to tell (two halves of the rounds gave {ratios}): promote again later"
    ratio = None if failed else min(with_adapter) / min(without)
    return Latency(ratio, _ROWS, num_tokens, len(without), failed)


def _in_turn(first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Return the seconds of each by round; which one goes first alternates."""
    seconds: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for number in range(-_WARMUP, _MAX_ROUNDS):
        if number >= _MIN_ROUNDS and time.perf_counter() - started > _BUDGET_S:
            break
        for which in (0, 1) if number % 2 else (1, 0):
            before = time.thread_time()
            (first, second)[which]()
            if number >= 0:
                seconds[which].append(time.thread_time() - before)
    return seconds

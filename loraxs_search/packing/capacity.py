"""What a device takes: a base and its number format, how many trials, and how many of their tokens at once.

Whether memory holds a base is asked before any of it is loaded. A base is held once where trials run in the precision
of its exact weights, as those of bfloat16 checkpoints do by default: in bfloat16 where that is fast, else in float32.
Otherwise it is held twice, and neither can be made from the other when it is asked for. Confirmation and scores of
candidates take the checkpoint's numbers, and so do factors, at any time: a trial that joins with a new rank or basis is
decomposed from them, since rounded weights have other singular vectors. Trials, and baselines in another thread beside
them, take those that they run in. Casting the one body to and fro would be exact only from bfloat16 to float32, and
would pull the weights from under whoever computes.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from loraxs_search.base_model.load import exact_dtype
from loraxs_search.base_model.locate import weight_files
from loraxs_search.base_model.reading import end_with_eos, readable
from loraxs_search.engine.passes import MEMORY_ERRORS, is_out_of_memory
from loraxs_search.errors import BaseModelError
from loraxs_search.machine import free_bytes
from loraxs_search.methods import get_method
from loraxs_search.records.adapter import LargestTrial
from loraxs_search.records.codec import MAX_AUTO_PACK_SIZE, numbers_by_dtype
from loraxs_search.records.task import BaseModel, LinearModule

log = logging.getLogger(__name__)

# Padded tokens of one pass beyond which a pass was no faster for being larger.
_CPU_TOKENS, _DEVICE_TOKENS = 3072, 65536
_MIN_TOKENS = 256
# Tokens of a pass that fill one worker of a CPU: from 8 trials of 16 rows of 27 tokens on two workers, a step took as
# long with 16, 32 and 64 (`bench_packing.py`).
_CPU_FULL_TOKENS = 1728
_MIN_GAIN = 1.1  # what twice the tokens must gain in tokens a second
_MEMORY_SHARE = 0.5  # of the free memory, since others use it too


def token_budget(modules: Iterable[LinearModule], dtype: torch.dtype, device: torch.device) -> int:
    """Return the padded tokens that one pass may have.

    What a pass keeps for backward is taken to be twice the input and output of every linear layer. That is a
    safe guess; a pass that runs out of memory nevertheless halves the budget and is computed again.
    """
    per_token = 2 * dtype.itemsize * sum(module.in_features + module.out_features for module in modules)
    limit = _CPU_TOKENS if device.type == "cpu" else _DEVICE_TOKENS
    return max(_MIN_TOKENS, min(limit, int(_MEMORY_SHARE * free_bytes(device) / per_token)))


def full_slots(
    device: torch.device,
    max_tokens: int,
    num_workers: int,
    batch_tokens: float,
    time_pass: Callable[[int], float] = lambda _: 0.0,
) -> int:
    """Return how many trials fill a device, at least one.

    The tokens of a pass that fill one worker of a CPU are a fixed number. On an accelerator passes are timed, each of
    twice the tokens, until that gains less than a tenth.

    Args:
        max_tokens: Of a pass.
        batch_tokens: Real tokens of one trial's batch.
        time_pass: Returns the seconds that a pass of so many tokens takes on this accelerator.
    """
    if device.type == "cpu":
        tokens = min(max_tokens, _CPU_FULL_TOKENS)
    else:
        tokens, seconds = _MIN_TOKENS, time_pass(_MIN_TOKENS)
        while 2 * tokens <= max_tokens:
            longer = time_pass(2 * tokens)
            if 2 * seconds < _MIN_GAIN * longer:
                break
            tokens, seconds = 2 * tokens, longer
    return max(1, min(MAX_AUTO_PACK_SIZE, round(num_workers * tokens / max(1.0, batch_tokens))))


@torch.no_grad()
def time_pass(model: PreTrainedModel, num_tokens: int) -> float:
    """Return the seconds that a pass of so many tokens through the bare base takes, the shortest of three.

    Infinite where the pass does not fit into memory.
    """
    seconds = list[float]()
    try:
        length = 32
        ids = torch.arange(max(1, num_tokens // length) * length, device=model.device).view(-1, length)
        ids = end_with_eos(ids % model.config.vocab_size, model.config)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for _ in range(3):
            started = time.perf_counter()
            readable(model, inputs)
            if model.device.type != "cpu":
                torch.accelerator.synchronize(model.device)
            seconds.append(time.perf_counter() - started)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    return min(seconds)


def fitting_slots(
    wanted: int,
    modules: Sequence[LinearModule],
    largest: LargestTrial,
    head_parameters: int,
    num_workers: int,
    device: torch.device,
) -> int:
    """Return `wanted`, or with a warning the number of slots that the free memory holds, at least one.

    A slot takes, outside activations, what the largest one does with all of these modules adapted.
    """
    methods = [(get_method(name), params) for name, params in largest.adapters]
    adapters = [method.slot_bytes(method.with_defaults(params), modules, num_workers) for method, params in methods]
    # Each of the head's numbers with its gradient and two moments; in the pack a gradient for each worker.
    slot_bytes = max(adapters, default=0) + 4 * head_parameters * (4 + num_workers)
    fitting = max(1, int(_MEMORY_SHARE * free_bytes(device) / max(1, slot_bytes)))
    if fitting < wanted:
        log.warning(
            "pack_size is %d, but memory holds the state of %d trials only: %d are used", wanted, fitting, fitting
        )
    return min(wanted, fitting)


_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def check_fits(base: BaseModel, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a base that the free memory of its device cannot hold.

    Its weights are held in the checkpoint's own precision, or in float32 where a CPU would emulate that, and in `dtype`
    if that is another one. They are counted from what its files say of themselves; files that are no safetensors count
    as long as they are.

    Args:
        dtype: Precision that trials run in.
    Raises:
        BaseModelError: it needs more than is free; the hint says what would fit.
    """
    files, stored = weight_files(Path(base.path)), Counter[str]()
    try:
        for file in files:
            stored.update(numbers_by_dtype(file))
    except ValueError:  # no safetensors, or damaged: loading says what is wrong with it
        stored.clear()
    numbers = {_DTYPES[name]: count for name, count in stored.items() if name in _DTYPES}
    num_floats, own = sum(numbers.values()), None
    if numbers:  # what `from_pretrained` gives by default: the configuration's, else that of most numbers
        config = json.loads((Path(base.path) / "config.json").read_text())
        declared = f"torch.{config.get('dtype', config.get('torch_dtype'))}"
        usual = max(numbers, key=lambda dtype: numbers[dtype])
        own = exact_dtype({str(it): it for it in _DTYPES.values()}.get(declared, usual), device)

    def needed(dtype: torch.dtype) -> int:
        if own is None:
            return sum(file.stat().st_size for file in files)
        return num_floats * (own.itemsize + (dtype.itemsize if dtype != own else 0))

    free = free_bytes(device)
    if needed(dtype) <= free:
        return
    names = [str(it).removeprefix("torch.") for it in (own, dtype)]
    copies = f" as {names[0]} and, for trials, as {names[1]}" if own not in (None, dtype) else ""
    options = {
        "set `search.precision` to bfloat16": needed(torch.bfloat16),
        "set `search.precision` to float32": needed(torch.float32),
    }
    if own not in (None, torch.bfloat16):
        options["use a copy of the base that is saved as bfloat16"] = num_floats * torch.bfloat16.itemsize
    fitting = [f"{what}, which takes {size / 2**30:.2f} GiB" for what, size in options.items() if size <= free]
    raise BaseModelError(
        f"A base must fit into the memory of its device, but {base.id} takes {needed(dtype) / 2**30:.2f} GiB{copies},"
        f" and {free / 2**30:.2f} GiB of {device} are free.",
        hint="; or ".join([*fitting, "use a device with more memory, or a smaller base"]),
    )

"""Learning-rate schedules as a pure function of the step, so that a resumed trial needs no scheduler state."""

from __future__ import annotations

import math

from loraxs_search.records import LrSchedule


def lr_factor(step: int, max_steps: int, warmup_ratio: float, schedule: LrSchedule) -> float:
    """Return the factor on the learning rate for the optimizer step numbered `step` (from 0).

    Linear rise over the first ceil(warmup_ratio * max_steps) steps, then `linear` or `cosine` decay to 0 at
    `max_steps`, or `constant`. The first step of a warm-up is not wasted on a rate of 0.
    """
    warmup = math.ceil(warmup_ratio * max_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress

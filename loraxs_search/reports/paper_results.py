"""What the paper reports, to be put beside what is measured here, and never in its place."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

SOURCE = "arXiv 2405.17604, as other documents quote it"
_GLUE = ("GLUE, mean of 6 tasks", "RoBERTa-large", ("sst2", "mrpc", "cola", "qnli", "rte", "stsb"))
_GSM8K = ("GSM8K", ("gsm8k", "metamath_gsm8k"))
_MATH = ("MATH", ("math", "metamath_math"))


@dataclass(frozen=True)
class PaperResult:
    """A number of the paper: of its own base, budget and rows.

    Args:
        method: As it is called here; `variant` tells several of one method apart.
        trained: Parameters of the adapter, about.
        score: In per cent.
        tasks: Names of the well-known tasks that it is of.
    """

    method: str
    variant: str
    setting: str
    base: str
    trained: int
    score: float
    tasks: tuple[str, ...]
    source: str = SOURCE


def paper_results(task: str, methods: Collection[str]) -> tuple[PaperResult, ...]:
    """Return what the paper reports of these methods on a well-known task, or on the suite that it belongs to."""
    return tuple(result for result in _RESULTS if task in result.tasks and result.method in methods)


def _glue(method: str, variant: str, trained: int, score: float) -> PaperResult:
    setting, base, tasks = _GLUE
    return PaperResult(method, variant, setting, base, trained, score, tasks)


def _maths(base: str, method: str, trained: int, scores: tuple[float, float]) -> tuple[PaperResult, PaperResult]:
    gsm8k, math = (
        PaperResult(method, "rank 64", setting, base, trained, score, tasks)
        for (setting, tasks), score in zip((_GSM8K, _MATH), scores, strict=True)
    )
    return gsm8k, math


_RESULTS = (
    _glue("full", "", 355_000_000, 88.2),
    _glue("lora", "rank 8", 786_000, 87.8),
    _glue("vera", "", 61_000, 87.8),
    _glue("lora-xs", "rank 8", 6_100, 86.25),
    _glue("lora-xs", "rank 25", 60_000, 88.69),
    *_maths("Mistral-7B", "lora", 168_000_000, (67.70, 19.68)),
    *_maths("Mistral-7B", "lora-xs", 920_000, (68.01, 17.86)),
    *_maths("Gemma-7B", "lora", 200_000_000, (74.90, 31.28)),
    *_maths("Gemma-7B", "lora-xs", 800_000, (74.22, 27.62)),
)

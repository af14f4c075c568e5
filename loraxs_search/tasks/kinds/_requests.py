"""What a task kind asks for while it scores, and what it gets: between a kind, which never sees a model, and those who
have one."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import numpy.typing as npt

from loraxs_search.errors import TrialDivergedError, UsageError
from loraxs_search.records.literals import Split
from loraxs_search.tasks.encoded import Batch, EncodedRows, Ragged

if TYPE_CHECKING:
    from torch import Tensor


Values = npt.NDArray[Any]
ResultT = TypeVar("ResultT")
KeyT = TypeVar("KeyT", bound=Hashable)


@runtime_checkable
class SplitProjection(Protocol):
    """A projection that can be had in two steps, so that logits in float32 need never exist for many reads at once."""

    def embed(self, states: Tensor) -> Tensor:
        """Return the output embedding's own numbers, (..., vocabulary), in the precision of the body."""
        ...

    def finish(self, embedded: Tensor) -> Tensor:
        """Return the logits that they mean, float32."""
        ...


@dataclass(frozen=True)
class PassOutputs:
    """What a pass computed for n rows of one task.

    Args:
        read: Of a base with a head, its outputs, float32: one a row, (n, outputs), or one at each of the M positions
            that the rows read, row after row, (M, outputs). Without a head, the last hidden states at these positions,
            (M, width), in the precision of the body.
        project: Hidden states (..., width) to logits (..., vocabulary), float32, by the base's own output embedding;
            None if there is a head. Logits are the largest tensors there are: ask for those that are needed, a part
            at a time. The bases' own is a `SplitProjection` too.
    """

    read: Tensor
    project: Callable[[Tensor], Tensor] | None = None


Reduce = Callable[[PassOutputs, "Batch"], "tuple[Tensor, ...]"]


@dataclass(frozen=True, eq=False)
class ForwardRequest:
    """A request: compute rows with the adapter, and reduce the outputs to something small.

    Rows are spread over passes as lengths allow and may be computed again, whole passes at a time, when memory runs
    out. `reduce` is called once for each part of the rows, in any order and from several threads at once.

    Args:
        source: A split, or rows made for this request.
        rows: Which rows of it, (n,), at least one; one may stand there twice.
        reduce: (outputs, batch) of some of the rows to tensors with these rows first. Requests of one task whose
            `reduce` compare equal, as a method of the task's one kind does, are reduced together.
    """

    source: Split | EncodedRows
    rows: npt.NDArray[np.int64]
    reduce: Reduce


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn instead of taking the likeliest.

    Args:
        seed: With it, a prompt draws the same tokens at any place of any request; equal prompts draw the same.
        temperature: Logits are divided by it; above 0.
        top_p: Only the likeliest tokens that have this share of the probability together are drawn from.
    Raises:
        UsageError: a value is outside its range.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.seed, int) or self.seed < 0:
            raise UsageError(f"`seed` must be a whole number from 0, but got seed={self.seed!r}.")
        if not 0 < self.temperature < math.inf:
            raise UsageError(
                f"`temperature` must be above 0 and finite, but got temperature={self.temperature}.",
                hint="give no sampling at all to have the likeliest token taken",
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"`top_p` must be above 0 and at most 1, but got top_p={self.top_p}.")


@dataclass(frozen=True, eq=False)
class GenerateRequest:
    """A request: continue prompts token by token, until each has ended.

    A row ends with an end token of the base or of `ends`, with a stop string, or after `max_new_tokens`; then it leaves
    the batch.
    What is written depends only on the row and its adapter, not on other rows.

    Args:
        source: The prompts, made for this request.
        rows: Which of them, (n,), at least one.
        stop: Texts that end a row; neither they nor what follows is in its text.
        sampling: None takes the likeliest token.
        ends: Further end tokens, such as the one that ends a turn of a chat.
    """

    source: EncodedRows
    rows: npt.NDArray[np.int64]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Generated:
    """What was written after each prompt of a `GenerateRequest`, in the order of its rows.

    Args:
        texts: Without special tokens, cut before the stop string.
        tokens: Every token that was written, the end token and those of a stop string too, int32.
        ended: False where `max_new_tokens` ended the row, (n,).
        margins: The least distance between the two largest logits of any step, (n,), float32.
    """

    texts: Sequence[str]
    tokens: Ragged
    ended: npt.NDArray[np.bool_]
    margins: npt.NDArray[np.float32]


Request = ForwardRequest | GenerateRequest


@dataclass(frozen=True, eq=False)
class RowScores:
    """The results of scoring rows, in their order.

    Args:
        predictions: The answer to each row, (n,): ids int64, numbers float32, or texts (dtype object), an empty one
            where a text has no answer in it. None if a report asks for no answers.
        losses: The sum of each row's loss, (n,), float32.
        counts: What these are sums of, (n,), int64.
        correct: How many of these were predicted, (n,), int64; None if the kind does not count them.
        ended: False where the bound on new tokens ended what was written, (n,); None if nothing was written.
    """

    predictions: Values | None
    losses: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]
    correct: npt.NDArray[np.int64] | None = None
    ended: npt.NDArray[np.bool_] | None = None

    @property
    def loss(self) -> float:
        """The mean loss over all reads."""
        return float(self.losses.sum() / np.float32(self.counts.sum()))


# A `ForwardRequest` is answered with a tuple of tensors, a `GenerateRequest` with a `Generated`.
RequestGenerator = Generator[Request, Any, ResultT]


def run_requests(
    generators: Mapping[KeyT, RequestGenerator[ResultT]],
    compute: Callable[[Mapping[KeyT, Request]], Mapping[KeyT, Any]],
) -> dict[KeyT, ResultT | TrialDivergedError]:
    """Drive generators side by side: the requests of all generators that wait are computed at once.

    Args:
        compute: Returns what the requests come to: for `ForwardRequest` tensors with the rows first, in their order, on
            the CPU; `Generated` for `GenerateRequest`.
    Returns:
        What each generator returned, or why it diverged; any other error is raised.
    """
    done: dict[KeyT, ResultT | TrialDivergedError] = {}
    waiting: dict[KeyT, Request] = {}

    def go_on(key: KeyT, result: Any) -> None:
        try:
            waiting[key] = next(generators[key]) if result is None else generators[key].send(result)
        except StopIteration as stop:
            done[key] = stop.value
        except TrialDivergedError as error:
            done[key] = error

    for key in generators:
        go_on(key, None)
    while waiting:
        results = compute(dict(waiting))
        waiting.clear()
        for key, result in results.items():
            go_on(key, result)
    return done

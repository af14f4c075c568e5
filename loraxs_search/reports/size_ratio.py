"""Quality against size: the adapters that are the best for what they store, and how much smaller one kind is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loraxs_search.pareto import Fronts
from loraxs_search.registry.finalist import NOISE


@dataclass(frozen=True)
class Point:
    """A complete trial.

    Args:
        trial: `study/trial_id`.
        score: Of the step that is kept.
        r_parameters: Of the adapter without its head.
        stored_bytes: Of its file, head and names included.
        without_projection: The same without what a seed gives back; None where there is nothing of the kind.
    """

    trial: str
    method: str
    score: float
    r_parameters: int
    head_parameters: int
    stored_bytes: int
    without_projection: int | None = None


@dataclass(frozen=True)
class SizeRatio:
    """What a group takes beside the reference to reach the best score that both reach.

    Args:
        score: That score.
        trial, reference: The smallest adapter of either that reaches it.
        r_parameters: The group's over the reference's; None where the reference trains no adapter.
        stored_bytes: The same of what is stored, heads included.
    """

    score: float
    trial: str
    reference: str
    r_parameters: float | None
    stored_bytes: float


def front_of(points: Iterable[Point], sign: float) -> tuple[Point, ...]:
    """Return the points that no other beats in score and stored bytes together, fewest bytes first.

    Args:
        sign: 1 when more is better, -1 when less is.
    """
    listed, fronts = list(points), Fronts[int]()
    for number, point in enumerate(listed):
        fronts.add(number, (sign * point.score, point.stored_bytes))
    return tuple(listed[number] for number in fronts.first())


def ratio_to(reference: Sequence[Point], front: Sequence[Point], sign: float, tolerance: float) -> SizeRatio | None:
    """Compare the smallest adapters of two fronts that reach the best score that both reach, less a tolerance."""
    if not reference or not front:
        return None
    mark = min(sign * reference[-1].score, sign * front[-1].score)
    own, other = (_smallest(points, sign, mark - tolerance) for points in (front, reference))
    parameters = own.r_parameters / other.r_parameters if other.r_parameters else None
    return SizeRatio(sign * mark, own.trial, other.trial, parameters, own.stored_bytes / other.stored_bytes)


def _smallest(front: Sequence[Point], sign: float, mark: float) -> Point:
    return next(point for point in front if sign * point.score >= mark - NOISE)

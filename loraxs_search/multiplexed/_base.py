"""What a method adds to a layer of the base: the contract between methods and the layers that serve many adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from loraxs_search.multiplexed.row_map import RowMap

RowMapT_co = TypeVar("RowMapT_co", bound="RowMap[Any]", covariant=True)
RowMapT_contra = TypeVar("RowMapT_contra", bound="RowMap[Any]", contravariant=True)


@dataclass(frozen=True)
class LayerRows(Generic[RowMapT_co]):
    """The rows of a pass as one layer computes them: T positions of the first row, T of the next, and so on.

    Args:
        num_positions: T. A layer may have fewer than the row has tokens; all rows have as many.
        worker: Which of the threads that compute passes side by side this is, from 0.
    """

    row_map: RowMapT_co
    num_positions: int
    worker: int = 0

    def positions(self, start: int, stop: int) -> slice:
        """Return where the positions of rows start..stop lie."""
        return slice(start * self.num_positions, stop * self.num_positions)


class LayerUpdate(Protocol[RowMapT_contra]):
    """What adapters of one method add to the output of one linear layer, row by row.

    Letters: n rows of T positions each. A row's update depends on that row and its adapter alone. Workers' threads call
    at the same time, each with rows of its own, so an update changes nothing of itself in `adapts` and `add_`.
    """

    def adapts(self, row_map: RowMapT_contra) -> bool:
        """Whether any of these rows is adapted on this layer; where none is, `add_` is not called."""
        ...

    def add_(self, x: Tensor, y: Tensor, rows: LayerRows[RowMapT_contra]) -> Sequence[Tensor]:
        """Add to y, in place, and return the tensors that `backward_` will need, fewest and smallest first of all.

        Called with gradients off.

        Args:
            x: What enters the layer, shape (n T, in), in the dtype of the base; read only.
            y: What leaves it, shape (n T, out), a view: the base's output and what other updates have added.
        """
        ...


class TrainableUpdate(LayerUpdate[RowMapT_contra], Protocol[RowMapT_contra]):
    """An update with gradients. It keeps its own, one for each worker, so that sums do not depend on timing.

    In the thread of a worker: `add_`, then at most one `backward_` for it; none where rows are only scored.
    """

    def backward_(
        self, dy: Tensor, dx: Tensor | None, saved: Sequence[Tensor], rows: LayerRows[RowMapT_contra]
    ) -> None:
        """Add this update's part to dx, in place, and its parameters' gradients to what the worker has gathered.

        Args:
            dy: Gradient of y, shape (n T, out); read only.
            dx: Gradient of x so far, shape (n T, in); None where nobody needs it.
            saved: What `add_` returned.
        """
        ...

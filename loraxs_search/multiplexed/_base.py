"""What a method adds to a layer of the base: the contract between methods and the layers that serve many adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

from loraxs_search.multiplexed.row_map import RowMap, SlotRowMap

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
        """Return the slice of the positions of rows start..stop."""
        return slice(start * self.num_positions, stop * self.num_positions)


class LayerUpdate(Protocol[RowMapT_contra]):
    """What adapters of one method add to the output of one linear layer, row by row.

    Letters: n rows of T positions each. A row's update depends on that row and its adapter alone. Several threads call
    at the same time, each for a pass of its own, so `adapts` and `add_` change nothing of the update itself.
    """

    def adapts(self, row_map: RowMapT_contra) -> bool:
        """Whether any of these rows is adapted on this layer; where none is, `add_` is not called."""
        ...

    def add_(self, x: Tensor, y: Tensor, rows: LayerRows[RowMapT_contra]) -> Sequence[Tensor]:
        """Add to y, in place, and return the tensors that `backward_` will need: they are held until then.

        Called with gradients off, in the order in which the layer's updates stand.

        Args:
            x: What enters the layer, shape (n T, in), in the dtype of the base; read only.
            y: What leaves it, shape (n T, out), a view: the base's output and what other updates have added.
        """
        ...


class TrainableUpdate(LayerUpdate[RowMapT_contra], Protocol[RowMapT_contra]):
    """An update with gradients. It gathers them per worker, so that sums do not depend on timing.

    At most one `backward_` follows each `add_`, none where rows are only scored; both name the same worker, and
    nothing else runs for that worker at the same time.
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


class SlotUpdates(Protocol):
    """What the slots of one method add to a base, while a pack has exactly these slots.

    For one thread, between passes. In a round: `begin`, then passes through the updates of all layers, then `collect`
    where they had gradients.
    """

    @property
    def modules(self) -> Sequence[str]:
        """Full names of the layers that some slot adapts, in model order."""
        ...

    @property
    def slot_bytes(self) -> int:
        """Memory that one slot takes here, in addition to its own."""
        ...

    def update(self, module: str) -> TrainableUpdate[SlotRowMap]:
        """Return what is added to the output of one of `modules`; slots are numbered as they were given."""
        ...

    def begin(self) -> None:
        """Read every slot's current tensors, and set gradients to zero."""
        ...

    def collect(self) -> None:
        """Set `grad` of every slot's tensors: summed over all passes, worker by worker in their order."""
        ...

"""The configuration of a search's hosts, and how a host is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from loraxs_search.records.base import BaseModelRef
from loraxs_search.records.host import LargestTrial
from loraxs_search.records.literals import MAX_AUTO_PACK_SIZE, MAX_STATE_BYTES, Precision
from loraxs_search.records.task import Task, TaskModel
from loraxs_search.search_space.space import Space
from loraxs_search.tasks.kinds import kind_of

if TYPE_CHECKING:
    from loraxs_search.packing.host import TrialHost

_GATHER_S = 1.0  # between the first calls of trials that start together


def training_host(config: HostConfig, task: Task, threads: int) -> TrialHost:
    """Return the host that trains."""
    import torch  # here, so that the driver, the snapshot store and the directory stay without it

    from loraxs_search.packing.host import TrialHost

    torch.set_num_threads(threads)
    return TrialHost(
        config.base,
        task,
        slots=None if config.pack_size == "auto" else config.pack_size,
        precision=config.precision,
        largest=config.largest,
        gather_s=_GATHER_S,
        max_state_bytes=config.max_state_bytes,
    )


@dataclass(frozen=True)
class HostConfig:
    """The configuration of a host: its base, and how it uses its device.

    Args:
        pack_size: Trials on a device; a node with twice the CPUs of the smallest one has twice as many.
        largest: The largest trial to come that shares passes.
        make: Makes the host in the actor's process, with a number of threads; a simulation names another, by a module
            the cluster can import.
        versions: The driver's, which a host's process must have too.
        max_state_bytes: Larger states of trials stay on the host's node.
        body: How all tasks load the base, whatever their outputs; None if a simulation loads none.
    """

    base: BaseModelRef
    precision: Precision
    pack_size: int | Literal["auto"]
    largest: LargestTrial
    make: Callable[[HostConfig, Task, int], TrialHost] = training_host
    versions: Mapping[str, str] = field(default_factory=dict)
    max_state_bytes: int = MAX_STATE_BYTES
    body: TaskModel | None = None

    @property
    def max_trials(self) -> int:
        """Trials that a host of the smallest node advances at once, at most."""
        return MAX_AUTO_PACK_SIZE if self.pack_size == "auto" else self.pack_size


def host_config(spaces: Sequence[Space]) -> HostConfig:
    """Return the hosts that serve all of these spaces, which agree in base, body and precision."""
    largest = [space.largest() for space in spaces]
    adapters = {repr(adapter): adapter for each in largest for adapter in each.adapters}
    sizes = [space.search.pack_size for space in spaces]
    fixed = [size for size in sizes if size != "auto"]
    return HostConfig(
        base=spaces[0].base_model,
        precision=spaces[0].search.precision,
        # Each study has its own slot at least.
        pack_size=max(*fixed, len(spaces)) if len(fixed) == len(sizes) else "auto",
        # As large as each of them; the same for spaces that are alike, however many there are.
        largest=LargestTrial(
            max(each.batch_size for each in largest), tuple(adapters[key] for key in sorted(adapters))
        ),
        max_state_bytes=int(1e6 * min(space.search.max_state_mb for space in spaces)),
        body=kind_of(spaces[0].task).model.body,
    )

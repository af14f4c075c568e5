"""The configuration of a search's hosts, and how a host is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from loraxs_search.records.adapter import LargestTrial
from loraxs_search.records.codec import MAX_AUTO_PACK_SIZE, Precision
from loraxs_search.records.task import BaseModelRef, Task
from loraxs_search.search_space.space import Space

if TYPE_CHECKING:
    from loraxs_search.packing.host import TrialHost

_GATHER_S = 1.0  # between the first calls of trials that start together


def _training_host(config: HostConfig, task: Task, threads: int) -> TrialHost:
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
    """

    base: BaseModelRef
    precision: Precision
    pack_size: int | Literal["auto"]
    largest: LargestTrial
    make: Callable[[HostConfig, Task, int], TrialHost] = _training_host
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def max_trials(self) -> int:
        """Trials that a host of the smallest node advances at once, at most."""
        return MAX_AUTO_PACK_SIZE if self.pack_size == "auto" else self.pack_size


def host_config(spaces: Sequence[Space]) -> HostConfig:
    """Return the hosts that serve all of these spaces, which agree in base, body, precision and size of packs."""
    search, largest = spaces[0].search, [space.largest() for space in spaces]
    return HostConfig(
        base=spaces[0].base_model,
        precision=search.precision,
        # Each study has its own slot at least.
        pack_size="auto" if search.pack_size == "auto" else max(search.pack_size, len(spaces)),
        largest=LargestTrial(
            max(each.batch_size for each in largest), tuple(adapter for each in largest for adapter in each.adapters)
        ),
    )

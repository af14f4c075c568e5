"""Where trials may run and how many at once: pure decisions over the nodes that are alive, or this machine."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from loraxs_search.errors import counted
from loraxs_search.records.codec import SearchDevice

COUNT_EVERY_S, SAY_EVERY_S = 3.0, 60.0
_MAX_SHOWN = 5  # nodes in a message
_logger = logging.getLogger(__name__)
_UNITS = 10_000  # Ray counts resources in ten-thousandths


@dataclass(frozen=True)
class Node:
    """A living node; it offers whole CPUs and GPUs to trials."""

    node_id: str
    num_cpus: int
    num_gpus: int = 0
    address: str = ""

    def offers(self, asked: Mapping[str, float]) -> bool:
        """Whether it has what a trial asks for, whoever holds it now."""
        return self.num_cpus >= asked.get("CPU", 0.0) and self.num_gpus >= asked.get("GPU", 0.0)


@dataclass(frozen=True)
class Slots:
    """What one trial asks of the cluster, and how many fit at once on each node."""

    resources: Mapping[str, float]
    by_node: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_slots(self) -> int:
        return sum(self.by_node.values())


def share_out(nodes: Iterable[Node], pack_size: int, device: SearchDevice) -> Slots:
    """Say what a trial asks for: a share of a GPU where there is any, else a share of the smallest node's CPUs.

    A node with twice the CPUs of the smallest one takes twice the trials.

    Args:
        pack_size: Trials on a GPU, or on the smallest node.
        device: `gpu` and `cpu` ask for that even where no node offers it yet.
    """
    nodes = list(nodes)
    gpus = {node.node_id: node.num_gpus * pack_size for node in nodes if node.num_gpus > 0}
    cpus = {node.node_id: node.num_cpus for node in nodes if node.num_cpus > 0}
    is_gpu = device == "gpu" or (device == "auto" and bool(gpus))
    whole = 1 if is_gpu else min(cpus.values(), default=1)
    share = math.floor(whole * _UNITS / pack_size) / _UNITS  # Ray rounds, and rounded up the last one would never fit
    if is_gpu:
        return Slots({"CPU": 0.0, "GPU": share}, gpus)
    return Slots({"CPU": share}, {node_id: n // whole * pack_size for node_id, n in cpus.items()})


@dataclass(frozen=True)
class PackSize:
    """How many trials share a device, and why, as shown to users."""

    size: int
    reason: str


def unshared(methods: Sequence[str]) -> PackSize:
    """Return the pack size of methods whose trials cannot share passes."""
    which = "any method" if len(methods) > 1 else f"method {methods[0]}"
    return PackSize(1, f"trials of {which} cannot share passes")


def choose_pack_size(
    asked: int | Literal["auto"], *, fits: int, fills: int, num_trials: int, num_devices: int
) -> PackSize:
    """Choose how many trials share a device.

    `auto` fills each device, and no more. Where all trials come in several rounds, the rounds are made even: as fast,
    and the sampler knows more before each of them.

    Args:
        fits: Trials whose state the memory of a device's node holds.
        fills: Trials that fill a device.
        num_trials: Of all studies that share the devices.
    """
    if asked != "auto":
        return PackSize(
            min(asked, fits), "" if asked <= fits else f"memory holds {counted(fits, 'trial')} at once, not {asked}"
        )
    full, devices = max(1, min(fills, fits)), max(1, num_devices)
    rounds = math.ceil(num_trials / (full * devices))
    size = math.ceil(num_trials / (rounds * devices))
    why = (
        f"{counted(fills, 'trial')} fill{'s' if fills == 1 else ''} a device"
        if full == fills
        else f"memory holds {counted(full, 'trial')} at once"
    )
    if size < full:
        several = f"{rounds} even rounds" if rounds > 1 else "one round"
        make = "the trial makes" if num_trials == 1 else f"the {num_trials} trials make"
        why += f", and {make} {several}{f' on {devices} devices' if devices > 1 else ''}"
    return PackSize(size, why)


class SlotCounter:
    """How many trials one study may run now, by the nodes that are alive: they are counted again every few seconds.

    Args:
        nodes: Returns the living nodes.
        pack_size, device: As of `share_out`.
        concurrent: Slots the user wants, whether or not they are there: what does not fit waits, which is how an
            autoscaler learns what is wanted. None means as many as fit, and one that waits if none fits.
        num_studies: Studies that share the slots.
    """

    def __init__(
        self,
        nodes: Callable[[], Sequence[Node]],
        pack_size: int,
        device: SearchDevice,
        *,
        concurrent: int | None,
        num_studies: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes, self._pack_size, self._device = nodes, pack_size, device
        self._concurrent, self._num_studies, self._clock = concurrent, num_studies, clock
        self._slots, self._counted_at = share_out(nodes(), pack_size, device), clock()
        self._said_at = -math.inf

    @property
    def slots(self) -> Slots:
        """The slots of the whole cluster, some seconds old at most."""
        if self._clock() - self._counted_at >= COUNT_EVERY_S:
            self._slots, self._counted_at = share_out(self._nodes(), self._pack_size, self._device), self._clock()
        return self._slots

    @property
    def max_concurrent(self) -> int:
        """Trials that this study may have in flight, at least one."""
        return self._concurrent or max(1, self.slots.num_slots // self._num_studies)

    def have_left(self, asked: Mapping[str, float], others_have_slots: bool = False) -> bool:
        """Say every minute what trials wait for; return whether they could start if they asked for what is there now.

        Called while Ray reserves no slot for any trial, or no node has what one asks for: a share of the nodes at the
        time of its proposal, which may all have left since. While others have slots, they are not disturbed.
        """
        nodes = self._nodes()
        is_held = any(node.offers(asked) for node in nodes)
        if not is_held and not others_have_slots and self.slots.num_slots:
            return True
        if (is_held and others_have_slots) or self._clock() - self._said_at < SAY_EVERY_S:
            return False
        self._said_at = self._clock()
        what = " and ".join(f"{amount:g} {name}" for name, amount in asked.items() if amount)
        have = [f"{node.address} has {node.num_cpus} CPU and {node.num_gpus} GPU" for node in nodes]
        more = ", ..." if len(have) > _MAX_SHOWN else ""
        _logger.warning(
            "%s for %s.",
            "Some trials wait" if others_have_slots else "No trial can start: each waits",
            f"{what}, which other work on this cluster holds, such as another search. `ray status` shows what is in use"
            if is_held
            else f"a node with {what} to join the cluster; now {', '.join(have[:_MAX_SHOWN]) or 'there is none'}{more}",
        )
        return False

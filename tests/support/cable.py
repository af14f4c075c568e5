"""A cable between two interfaces, in user space: with delay, jitter and loss, where the kernel has no `tc netem`.

    python cable.py FIRST SECOND '{"delay_s": 0.05, "jitter_s": 0, "loss": 0}' '{...}'

The first description is of frames from FIRST to SECOND, the other one of those back. It prints a line once frames pass.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import random
import select
import socket
import sys
import time

_ALL_PROTOCOLS, _SOL_PACKET, _IGNORE_OUTGOING = 3, 263, 23  # <linux/if_ether.h>, <linux/socket.h>, <linux/if_packet.h>
_LONGEST = 70_000  # bytes of a frame


def main() -> None:
    ends = [_listen(name) for name in sys.argv[1:3]]
    lines = dict(zip(ends, map(json.loads, sys.argv[3:5]), strict=True))
    others = dict(zip(ends, reversed(ends), strict=True))
    chance = random.Random(0)
    waiting: list[tuple[float, int, bytes, socket.socket]] = []
    number = 0
    print("ready", flush=True)
    while True:
        left_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], left_s)[0]:
            line = lines[end]
            for frame in _frames(end):
                if chance.random() >= line["loss"]:
                    number += 1
                    due = time.monotonic() + line["delay_s"] + chance.uniform(0, line["jitter_s"])
                    heapq.heappush(waiting, (due, number, frame, others[end]))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, frame, other = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # that end is off
                other.send(frame)


def _listen(name: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    end.bind((name, 0))
    end.setblocking(False)
    end.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    return end


def _frames(end: socket.socket) -> list[bytes]:
    """Return what has come, but not more than the other end should wait for."""
    found: list[bytes] = []
    with contextlib.suppress(OSError):  # no more, or that end is off
        while len(found) < 256:
            found.append(end.recv(_LONGEST))
    return found


if __name__ == "__main__":
    main()

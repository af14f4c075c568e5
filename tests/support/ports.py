"""Free ports of this machine."""

from __future__ import annotations

import contextlib
import random
import socket

# Above those of Ray's workers, and below those that the system gives to whoever asks for any: a server may begin to
# listen long after its port was chosen.
_PORTS = range(20_000, 32_000)


_given = set[int]()


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on, and that this process has not given before."""
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port

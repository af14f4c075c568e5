"""Free ports of this machine."""

from __future__ import annotations

import random
import socket

# Above those of Ray's workers, and below those that the system gives to whoever asks for any: a server may begin to
# listen long after its port was chosen.
_PORTS = range(20_000, 32_000)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    while True:
        with socket.socket() as probe:
            port = random.SystemRandom().choice(_PORTS)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

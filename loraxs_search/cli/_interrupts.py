"""What Ctrl-C and SIGTERM do during a search: once ends it cleanly, twice ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_CURSOR_ON = b"\x1b[?25h"


@contextlib.contextmanager
def interrupts(say: Callable[[str], None], is_training: Callable[[], bool], stop: threading.Event) -> Iterator[None]:
    """Handle SIGINT and SIGTERM while a search runs.

    The first one sets `stop` while trials train, and is a `KeyboardInterrupt` before and after. The second one leaves
    the process as it is: Ray's processes end with it, and the study folder is whole at any moment.

    Args:
        say: Called from the signal handler; must not write to a buffered stream.
        is_training: Whether `stop` is being looked at now.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def handle(_: int, __: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            os.write(2, (_CURSOR_ON if os.isatty(2) else b"") + b"\nerror: interrupted twice, ended at once\n")
            os._exit(130)
        say("stopping; Ctrl-C again ends at once")
        stop.set()
        if not is_training():
            raise KeyboardInterrupt

    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # read by Tune when its loop starts
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

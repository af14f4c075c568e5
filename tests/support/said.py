"""What a command line of this process said."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def ok(self) -> str:
        """What is on stdout, after a success without a traceback."""
        assert self.code == 0, self.err
        assert "Traceback" not in self.err
        return self.out

    def is_error(self, code: int, *parts: str) -> bool:
        """Check the form errors have: `error: ...`, a blank line, `hint: ...`, no traceback, JSON on stdout at most."""
        message, hint = self.err.split("\n\nhint: ")
        assert message.splitlines()[-1] != ""
        assert "error: " in message
        assert hint.strip()
        assert "Traceback" not in self.err
        assert self.out == "" or json.loads(self.out)["error"]["exit_code"] == code  # under --json
        assert self.code == code, self.err
        for part in parts:
            assert part in self.err
        return True

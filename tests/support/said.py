"""What a command line of this process said."""

from __future__ import annotations

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
        """Check the form every error has: `error: ...`, a blank line, `hint: ...`, nothing on stdout, no traceback."""
        message, hint = self.err.split("\n\nhint: ")
        assert message.splitlines()[-1] != ""
        assert "error: " in message
        assert hint.strip()
        assert "Traceback" not in self.err
        assert self.out == ""
        assert self.code == code, self.err
        for part in parts:
            assert part in self.err
        return True

"""What is read without the library is what the library has written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from loraxs_search.safetensors_header import MAX_BYTES, entry_of

CONTENT = save({"x": np.arange(3.0)}, {"about": json.dumps({"rank": 4})})


def test_an_entry_is_read_from_bytes_and_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(CONTENT)
    assert entry_of(CONTENT, "about") == entry_of(path, "about") == {"rank": 4}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (CONTENT, "must have an entry 'other'"),
        (save({"x": np.arange(3.0)}), "must have an entry 'other'"),
        (b"", "Expecting value"),
        (CONTENT[:20], "Unterminated string"),
        (b"\x02" + bytes(7) + b"[]", "must have an entry"),
        ((MAX_BYTES + 1).to_bytes(8, "little") + b"{}", "must have at most"),
    ],
)
def test_what_is_no_such_file_is_refused(content: bytes, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        entry_of(content, "other")

"""What is read without the library is what the library has written."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save

from loraxs_search.records.codec import MAX_HEADER_BYTES, entry_of, numbers_by_dtype

CONTENT = save({"x": np.arange(3.0)}, {"about": json.dumps({"rank": 4})})


def test_an_entry_is_read_from_bytes_and_from_a_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(CONTENT)
    assert entry_of(CONTENT, "about") == entry_of(path, "about") == {"rank": 4}


def test_what_is_no_such_file_is_refused():
    faults = {
        CONTENT: "must have an entry 'other'",
        save({"x": np.arange(3.0)}): "must have an entry 'other'",
        CONTENT[:20]: "Unterminated string",
        b"\x02" + bytes(7) + b"[]": "must be a mapping",
        (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}": "must have at most",
    }
    for content, fault in faults.items():
        with pytest.raises(ValueError, match=fault):
            entry_of(content, "other")


def test_numbers_are_counted_by_type(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32), "c": np.zeros((), np.int64)}
    path.write_bytes(save(tensors, {"about": "{}"}))
    assert numbers_by_dtype(path) == {"F32": 10, "I64": 1}
    path.write_bytes(b"no header")
    with pytest.raises(ValueError, match="must have at most"):
        numbers_by_dtype(path)

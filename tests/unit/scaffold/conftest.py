"""A space as `init` makes it of a file of rows, without the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraxs_search.scaffold.draft import DraftedSpace, draft_space
from loraxs_search.scaffold.roles import Choices


@pytest.fixture
def drafted(fresh_home, tmp_path, monkeypatch):
    """Write a file here and draft a space of it; without another `base`, none is at hand, and no token is counted."""
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path / "rows")

    def make(name: str, content: str | bytes, **choices: Any) -> DraftedSpace:
        Path("rows.yaml").unlink(missing_ok=True)
        Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return draft_space(name, Path("rows.yaml"), Choices(**{"base": "no-such-org/no-such-base", **choices}))

    return make

"""A space as `init` makes it of a file of rows, without the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from loraxs_search.records.task import Task
from loraxs_search.scaffold.draft import Draft, draft_space
from loraxs_search.scaffold.roles import Choices
from loraxs_search.search_space.space import Space


class Drafted(NamedTuple):
    """A space, and the draft that it was written from."""

    space: Space
    draft: Draft

    @property
    def task(self) -> Task:
        """The space's."""
        return self.space.task


@pytest.fixture
def drafted(fresh_home, tmp_path, monkeypatch):
    """Write a file here and draft a space of it; without another `base`, none is at hand, and no token is counted."""
    (tmp_path / "rows").mkdir()
    monkeypatch.chdir(tmp_path / "rows")

    def make(name: str, content: str | bytes | None, **choices: Any) -> Drafted:
        if content is not None:
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
        draft = draft_space(name, Path("rows.yaml"), Choices(**{"base": "no-such-org/no-such-base", **choices}))
        return Drafted(draft.save(Path("rows.yaml")), draft)

    return make

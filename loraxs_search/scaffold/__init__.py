"""A first space for your rows: which columns, what kind of task, how long a search."""

from __future__ import annotations

from loraxs_search.scaffold._answers import Choices, UndecidedError
from loraxs_search.scaffold._draft import Draft, draft_space, task_name
from loraxs_search.scaffold._init import init, save_draft

__all__ = ["Choices", "Draft", "UndecidedError", "draft_space", "init", "save_draft", "task_name"]

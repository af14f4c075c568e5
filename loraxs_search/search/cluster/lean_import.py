"""Ray Tune for the processes of trials, without what these never use: pandas and ray.data, 40 of its 70 MB."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from loraxs_search.search.cluster import ray_private

_UNUSED = ("pandas", "ray.data")


def import_tune() -> Any:
    """Return `ray.tune`; in a worker's process one whose modules see placeholders for what trials never use.

    Ray Tune imports both for tables of results, which are made in the driver only. There is a process for each trial
    in flight, so they would be most of what a slot costs. A Ray that cannot be imported this way is imported whole.
    """
    if ray_private.in_worker():
        with contextlib.suppress(Exception):  # a Ray that makes more of them than names
            return import_without("ray.tune", _UNUSED)
    return importlib.import_module("ray.tune")


def import_without(name: str, unused: Sequence[str]) -> ModuleType:
    """Import a module that sees placeholders for others; afterwards these are as if nobody had asked for them.

    Raises:
        Exception: it cannot be imported like that; all that it had imported is forgotten.
    """
    before = set(sys.modules)
    with _placeholders([module for module in unused if module not in before]):
        try:
            return importlib.import_module(name)
        except BaseException:
            _forget(module for module in set(sys.modules) - before if module.startswith("ray."))
            raise


# ---- placeholders ----------------------------------------------------------------------------------------------------
class _Placeholder(ModuleType):
    """A module in which every name is a class without anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(MetaPathFinder, Loader):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        mine = any(f"{fullname}.".startswith(f"{name}.") for name in self._names)
        return ModuleSpec(fullname, self, is_package=True) if mine else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


@contextlib.contextmanager
def _placeholders(names: Sequence[str]) -> Iterator[None]:
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _forget([name for name, module in sys.modules.items() if isinstance(module, _Placeholder)])


def _forget(names: Any) -> None:
    """Take modules out of what is imported, and out of the packages they are in."""
    for name in list(names):
        module = sys.modules.pop(name, None)
        parent, _, own = name.rpartition(".")
        if parent in sys.modules and vars(sys.modules[parent]).get(own) is module:
            delattr(sys.modules[parent], own)

"""The yardsticks of a study: measured once, on a host beside its trials, and in the study folder before the end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayTaskError

from loraxs_search.errors import HomeError
from loraxs_search.records import Yardstick, YardstickName
from loraxs_search.search.hosts.pool import HOST_LOST
from loraxs_search.search.hosts.study_actors import StudyActors
from loraxs_search.studies import StudyFolder

log = logging.getLogger(__name__)

_NAMES: tuple[YardstickName, ...] = ("constant", "tfidf", "features")


class StudyYardsticks:
    """Begins to measure a study's yardsticks, unless they are in its folder, and waits for them at the end."""

    def __init__(self, folder: StudyFolder, crew: StudyActors) -> None:
        self._folder, self._crew = folder, crew
        self._written: Any = None if folder.yardsticks() is not None else crew.begin_yardsticks()

    def result(self) -> tuple[Yardstick, ...]:
        """Return the yardsticks once they are in the study folder; those that cannot be had say why.

        Raises:
            HomeError: the folder cannot be written.
        """
        if self._written is not None:
            self._finish(lambda: ray.get(self._written), self._measure_again)
            self._written = None
        return self._folder.yardsticks() or ()

    def _finish(self, *ways: Callable[[], object]) -> None:
        """Go the first way that leads to yardsticks in the folder; where none does, write that they failed."""
        reason = ""
        for way in ways:
            try:
                way()
            except HomeError:
                raise
            except (*HOST_LOST, RayTaskError) as error:
                reason = next(iter(str(getattr(error, "cause", error)).strip().splitlines()), type(error).__name__)
            else:
                return
        log.warning("the study's yardsticks cannot be measured: %s", reason)
        self._folder.write_yardsticks([Yardstick(name, failed=reason[:200]) for name in _NAMES])

    def _measure_again(self) -> None:
        self._folder.write_yardsticks(self._crew.yardsticks())

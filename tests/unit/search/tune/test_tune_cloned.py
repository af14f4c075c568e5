"""Trials that are asked for as clones of others."""

from __future__ import annotations

from typing import Any

import pytest
from support.asked_driver import drive, refusal, send

from loraxs_search.records import Lineage
from loraxs_search.studies import StudyFolder

pytestmark = pytest.mark.usefixtures("plain_specs")


def test_a_clone_has_its_sources_params_but_for_those_given(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    driver.end("00000")
    send(folder, "clone", "0", params={"learning_rate": 0.02})
    assert driver.begin() == "00001"
    records = folder.journal().records
    assert records["00001"].params == {**records["00000"].params, "learning_rate": 0.02}
    assert (records["00001"].lineage, records["00001"].is_hidden) == (Lineage("s", "00000"), False)


@pytest.mark.parametrize(
    ("arguments", "params", "law"),
    [
        ({"warm": True}, {}, "`clone` must name params alone"),
        ({}, {"learning_rate": 1.0}, "`learning_rate` must be as the space has it: learning_rate is 1.0, and here"),
        ({"force": True}, {"rank": 5}, "`rank` must be as the space has it: rank is 5, and here one of 4, 8, 16"),
        ({}, {"rnak": 8}, "`rnak` must be a parameter of a trial: rank"),
        ({}, {"learning_rate": "fast"}, "`learning_rate` must be a number above 0, but got"),
    ],
)
def test_a_clone_that_cannot_be_is_refused_with_the_law(
    folder: StudyFolder, arguments: dict[str, bool], params: dict[str, Any], law: str
) -> None:
    driver = drive(folder)
    driver.begin()
    command = send(folder, "clone", "00000", params=params, **arguments)
    driver.commander.take_all()
    assert law in refusal(folder, command)


def test_force_takes_an_optimizer_out_of_the_space_and_the_sampler_does_not_see_it(folder: StudyFolder) -> None:
    driver = drive(folder)
    driver.begin()
    driver.end("00000")
    send(folder, "clone", "00000", params={"learning_rate": 1.0, "weight_decay": 0.1}, force=True)
    assert driver.begin() == "00001"
    record = folder.journal().records["00001"]
    assert (record.params["learning_rate"], record.params["weight_decay"], record.is_hidden) == (1.0, 0.1, True)
    assert driver.trials.trials[1].params == {}

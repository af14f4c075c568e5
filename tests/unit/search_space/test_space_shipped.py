"""Every space that comes with the package is sound, and opens with how to use it.

A copied space means what the original means, wherever it lies.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.study import create_study

import loraxs_search
from loraxs_search.home import shipped_space_path, shipped_spaces
from loraxs_search.search_space.load import load_space
from loraxs_search.search_space.parameters import parameters_of

SPACES = shipped_spaces()


@pytest.mark.parametrize("name", SPACES)
def test_a_shipped_space_is_sound_can_be_copied_and_opens_with_its_command(name, say, tmp_path):
    space = load_space(name)
    params = space.suggest(create_study().ask())
    own = parameters_of(space.parameters, space.method_of(params).name)
    always = {parameter.name for parameter in own.values() if not all(each.when for each in parameter.alternatives)}
    assert space.name == name
    assert always <= set(params) - {"method"} <= set(own)
    copy = tmp_path / f"{name}.yaml"
    assert say("spaces", "copy", name, str(copy)).ok
    schema = shipped_space_path(name).with_name("space.schema.json")
    assert f"\n# yaml-language-server: $schema={schema}\n" in copy.read_text()
    assert replace(load_space(str(copy)), text="", source="", folder="") == replace(
        space, text="", source="", folder=""
    )
    opening = shipped_space_path(name).read_text().split("\n\n")[0]
    assert "# Needs: " in opening
    assert f"# Run:       loraxs-search launch {name}\n" in opening
    found = re.search(rf"# Override:  loraxs-search launch {name} (--set .*)", opening)
    assert found is not None
    assert load_space(name, overrides=[word for word in shlex.split(found[1]) if word != "--set"]) != space


def test_rungs_end_at_max_steps():
    for name in SPACES:
        plan = load_space(name).search
        rung = plan.report_every
        while rung < plan.max_steps:
            rung *= int(plan.params.get("reduction_factor", 2))
        assert rung == plan.max_steps, name


def test_an_installed_package_finds_its_spaces_inside_itself(tmp_path):
    """As the wheel lays them out: the spaces and their data in the package, and no checkout beside it."""
    package = Path(loraxs_search.__file__).parent
    shutil.copytree(package, tmp_path / "loraxs_search", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(shipped_space_path("movie_reviews").parent, tmp_path / "loraxs_search" / "_spaces")
    code = "from loraxs_search.search_space.load import load_space; print(load_space('movie-reviews').source)"
    # -P -s: neither the working directory nor a user's site folder may lend the checkout.
    command = [sys.executable, "-P", "-s", "-c", code]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(tmp_path / "loraxs_search" / "_spaces" / "movie_reviews.yaml")

"""The wheel is complete, and works without the checkout."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from support.environments import clean_variables
from support.pages import ROOT

import loraxs_search

WHEEL = f"loraxs_search-{loraxs_search.__version__}-py3-none-any.whl"


def checkout() -> list[Path]:
    """Return the files that are part of this checkout, by their paths in it."""
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("only git knows what belongs to this folder")
    return [Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def contents(wheel):
    """The files of the wheel that all tests share."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def in_a_wheel() -> dict[str, Path]:
    """Return the files of this checkout that belong into a wheel, by their places there."""
    moved = {"loraxs_search": "loraxs_search", "search_spaces": "loraxs_search/_spaces"}
    files = [path for path in checkout() if path.parts[0] in moved]
    return {str(PurePosixPath(moved[path.parts[0]], *path.parts[1:])): path for path in files}


def test_the_wheel_has_every_file_of_the_package_and_its_spaces(contents):
    places = in_a_wheel()
    assert {
        "loraxs_search/py.typed",
        "loraxs_search/serve/page.html",
        "loraxs_search/reports/html/templates/report.html.j2",
        "loraxs_search/_spaces/data/movie_reviews/LICENSE",
        "loraxs_search/_spaces/data/movie_reviews/train.jsonl.gz",
        "loraxs_search/_spaces/tasks/sst2.yaml",
    } <= set(places)
    assert set(places) - set(contents) == set()
    assert [name for name, path in places.items() if contents[name] != (ROOT / path).read_bytes()] == []
    others = {PurePosixPath(name).parts[0] for name in set(contents) - set(places)}
    assert f"{WHEEL.removesuffix('-py3-none-any.whl')}.dist-info" in others
    assert not any(name.startswith(("tests/", "cluster/")) or name.endswith(".pyc") for name in contents)


def test_the_wheel_declares_its_command_and_its_extras(contents):
    (declared,) = [text.decode() for name, text in contents.items() if name.endswith(".dist-info/entry_points.txt")]
    assert "loraxs-search = loraxs_search.cli:main" in declared
    (metadata,) = [text.decode() for name, text in contents.items() if name.endswith(".dist-info/METADATA")]
    assert {"Provides-Extra: serve", "Provides-Extra: onnx"} <= set(metadata.splitlines())


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """The command of the wheel in a fresh environment, which borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True, timeout=120)
    ours, theirs = (next(Path(place, "lib").glob("python3*/site-packages")) for place in (sys.prefix, folder))
    (theirs / "dependencies.pth").write_text(f"{ours}\n")  # as a plain folder: links to a checkout are not followed
    return folder / "bin" / "loraxs-search"


@pytest.mark.slow
def test_the_wheel_has_its_command_and_its_spaces_without_a_checkout(command, tmp_path):
    assert loraxs_search.__version__ in say(command, tmp_path, "--version")
    assert "movie_reviews" in say(command, tmp_path, "spaces", "ls")


def say(command: Path, folder: Path, *args: str) -> str:
    """Run the command as a user does, where nothing leads to the checkout."""
    called = {"cwd": folder, "env": clean_variables(), "timeout": 280}
    done = subprocess.run([command, *args], capture_output=True, text=True, check=False, **called)
    assert done.returncode == 0, done.stderr
    return done.stdout

"""The wheel is complete, and works without the checkout."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from support.pages import ROOT
from support.shell import clean_variables

import loraxs_search


def test_the_wheel_has_every_file_of_the_package_its_spaces_and_its_extras(wheel):
    listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("only git knows what belongs to this folder")
    moved = {"loraxs_search": "loraxs_search", "search_spaces": "loraxs_search/_spaces"}
    paths = [Path(name) for name in done.stdout.split("\0") if name.split("/")[0] in moved and (ROOT / name).is_file()]
    places = {str(PurePosixPath(moved[path.parts[0]], *path.parts[1:])): path for path in paths}
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
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
    assert not any(name.startswith(("tests/", "cluster/")) or name.endswith(".pyc") for name in contents)
    metadata = contents[f"loraxs_search-{loraxs_search.__version__}.dist-info/METADATA"].decode()
    assert {"Provides-Extra: serve", "Provides-Extra: onnx"} <= set(metadata.splitlines())


@pytest.mark.slow
def test_the_wheel_has_its_command_and_its_spaces_without_a_checkout(wheel, tmp_path):
    """In a fresh environment, which borrows the dependencies of this one."""
    venv.create(folder := tmp_path / "env")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True, timeout=120)
    ours, theirs = (next(Path(place, "lib").glob("python3*/site-packages")) for place in (sys.prefix, folder))
    (theirs / "dependencies.pth").write_text(f"{ours}\n")  # as a plain folder: links to a checkout are not followed
    called = {"cwd": tmp_path, "env": clean_variables(), "timeout": 280, "capture_output": True, "text": True}
    for args, said in ((["--version"], loraxs_search.__version__), (["spaces", "ls"], "movie_reviews")):
        done = subprocess.run([folder / "bin" / "loraxs-search", *args], check=False, **called)
        assert done.returncode == 0, done.stderr
        assert said in done.stdout

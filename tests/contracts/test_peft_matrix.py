"""PEFT's own test matrix, from its source distribution, run on the LORAXS method.

Saving, loading, merging, several adapters, precisions, disabling, deleting: `peft_matrix_conftest.py` says of which
layers, and what is skipped by design.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path

import pytest

PEFT = "0.21.2"
REQUIREMENT = f"peft=={PEFT} --hash=sha256:b803ccfb3f3f316004d850284306687833a2235ea278fb56abc856203456142e\n"
MATRIX, LEAST = "test_custom_models", 420
FILES = ("testing_common", "testing_utils", MATRIX)
PYTEST_INI = "[pytest]\naddopts = -p no:cacheprovider\nmarkers =\n    regression: PEFT's\n"


@pytest.fixture(scope="module")
def sdist(request):
    """PEFT's source distribution, downloaded once and kept in pytest's cache."""
    if version("peft") != PEFT:
        pytest.skip(f"the matrix is that of peft {PEFT}, and {version('peft')} is installed")
    folder = Path(request.config.cache.mkdir("peft-sdist"))
    path = folder / f"peft-{PEFT}.tar.gz"
    if not path.is_file():
        wanted = folder / "requirements.txt"
        wanted.write_text(REQUIREMENT)
        download = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest"]
        command = [sys.executable, "-m", "pip", *download, str(folder), "--require-hashes", "-r", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        if done.returncode:
            pytest.skip(f"no source distribution of peft {PEFT}: {done.stderr.strip().splitlines()[-1]}")
    return path


@pytest.fixture(scope="module")
def suite(sdist, tmp_path_factory):
    """A folder with PEFT's tests as a package, and our conftest beside it."""
    folder = tmp_path_factory.mktemp("peft-matrix")
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").touch()
    with tarfile.open(sdist) as archive:
        for name in FILES:
            member = archive.extractfile(f"peft-{PEFT}/tests/{name}.py")
            assert member is not None
            (folder / "tests" / f"{name}.py").write_bytes(member.read())
    shutil.copy(Path(__file__).with_name("peft_matrix_conftest.py"), folder / "conftest.py")
    (folder / "pytest.ini").write_text(PYTEST_INI)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.long(part="software")
@pytest.mark.timeout(900)
def test_loraxs_passes_what_peft_asks_of_its_methods(suite, fresh_home):
    report = suite / f"{MATRIX}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", f"tests/{MATRIX}.py", f"--junitxml={report}"]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "LORAXS_HOME": str(fresh_home), "TMPDIR": str(suite)}
    done = subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found = ET.parse(report).getroot().find("testsuite")
    assert found is not None
    passed = int(found.attrib["tests"]) - int(found.attrib["skipped"])
    assert passed >= LEAST, f"{passed} tests ran: has the matrix moved?"

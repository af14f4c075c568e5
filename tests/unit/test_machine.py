"""What a process may still take is what its container or job leaves it, where that is less than the machine has."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from loraxs_search.machine import available_bytes

MIB = 1 << 20
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


def group(folder: Path, names: tuple[str, str, str], limit: str, used: int, given_back: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {given_back}\n")


@pytest.fixture
def own(tmp_path):
    return tmp_path / "own"


def test_without_groups_it_is_the_machines(tmp_path, own):
    assert available_bytes(tmp_path, own) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    own.write_text("0::/\n")
    group(tmp_path, V2, "max", 0)
    assert available_bytes(tmp_path, own) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(("line", "names", "under"), [("0::{}", V2, ""), ("4:cpu,memory:{}", V1, "memory")])
def test_the_least_that_any_group_around_leaves(line, names, under, tmp_path, own):
    own.write_text(f"9:pids:/elsewhere\n{line.format('/job/step')}\n")
    root = tmp_path / under
    group(root / "job" / "step", names, str(100 * MIB), 10 * MIB)
    assert available_bytes(tmp_path, own) == 90 * MIB
    group(root / "job", names, str(50 * MIB), 30 * MIB, given_back=5 * MIB)
    assert available_bytes(tmp_path, own) == 25 * MIB
    group(root / "job", names, str(50 * MIB), 60 * MIB)
    assert available_bytes(tmp_path, own) == 0


def test_a_container_sees_the_root_of_its_group_alone(tmp_path, own):
    own.write_text("4:memory:/kubepods/pod1/abc\n")
    group(tmp_path / "memory", V1, str(64 * MIB), MIB)
    assert available_bytes(tmp_path, own) == 63 * MIB

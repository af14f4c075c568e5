"""One factor file: a content key for its name, safetensors with a checksum inside."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from loraxs_search.factors._compute import Factors
from loraxs_search.home import disk_faults, mark_used, write_atomic

ALGORITHM_VERSION: Final = 1  # raise when any change moves the numbers: old files then have other keys
_NAMES: Final = ("left", "singular_values", "right")
_ABOUT: Final = "factors"


class DamagedFileError(Exception):
    """A factor file that cannot be trusted; raised within this package only."""


def content_key(weight: Tensor, *, rank: int, basis: str, driver: str) -> str:
    """Return the sha256 of everything the factors depend on: the weight's bytes and how they are decomposed."""
    recipe = {
        "algorithm": ALGORITHM_VERSION,
        "basis": basis,
        "driver": driver,
        "dtype": str(weight.dtype),
        "rank": rank,
        "shape": list(weight.shape),
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    digest.update(_raw_bytes(weight))
    return digest.hexdigest()


def write_factors(path: Path, factors: Factors) -> None:
    """Write a factor file whole or not at all.

    Raises:
        HomeError: no space, or no right to write.
    """
    tensors = {"left": factors.left, "singular_values": factors.singular_values, "right": factors.right}
    about = {
        "algorithm": ALGORITHM_VERSION,
        "basis": factors.basis,
        "checksum": checksum(factors),
        "driver": factors.driver,
    }
    # One entry, since safetensors writes several in no fixed order: the same factors make the same file.
    write_atomic(path, save(tensors, {_ABOUT: json.dumps(about, sort_keys=True)}))


def read_factors(path: Path) -> Factors:
    """Read a factor file and verify its checksum.

    Raises:
        FileNotFoundError: there is none.
        DamagedFileError: it is truncated, altered, or not a factor file.
        HomeError: it may not be read.
    """
    with disk_faults(path):
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
                # Cloned: a mapped file that another program cuts short would kill this process, not raise.
                tensors = {name: file.get_tensor(name).clone() for name in _NAMES}
        except (SafetensorError, json.JSONDecodeError) as error:
            raise DamagedFileError(str(error)) from error
    factors = Factors(**tensors, driver=about.get("driver", ""), basis=about.get("basis", ""))
    if about.get("checksum") != checksum(factors):
        raise DamagedFileError("the checksum is not that of the content")
    mark_used(path)
    return factors


def checksum(factors: Factors) -> str:
    """Return the sha256 of the factors' numbers."""
    digest = hashlib.sha256()
    for name in _NAMES:
        digest.update(_raw_bytes(getattr(factors, name)))
    return digest.hexdigest()


def _raw_bytes(tensor: Tensor) -> memoryview:
    # Through uint8, since numpy knows no bfloat16.
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data

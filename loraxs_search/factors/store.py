"""Factors by content: computed once per weight, on disk for every process, in memory for this one.

A factor file has a content key for its name, and is safetensors with a checksum inside.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from loraxs_search.errors import IntegrityError
from loraxs_search.factors.compute import Driver, Factors, checked_driver, compute_factors, fault
from loraxs_search.home import disk_faults, factor_path, home, mark_used, write_atomic
from loraxs_search.machine import available_bytes, side_by_side
from loraxs_search.records.codec import Basis

# R has a meaning only between the factors it was trained in, so a few numbers identify a pair A, B. Each is w^T D x: D
# holds the directions (rows of A, columns of B, each scaled to length one), x is a probe over features and w weighs the
# components, both from fixed fractional parts. All are of order one whatever the rank and the size, so one absolute
# tolerance serves. A flipped sign, a swap or a rotation moves them by far more than rounding does.

# Another machine's LAPACK moves the numbers by less than 1e-5; one flipped sign by about 1/sqrt(rank).
FINGERPRINT_TOLERANCE = 1e-3
DIGITS = 6
_SAMPLE = 2**16
# Multiples of these have fractional parts that never repeat: one seed per probe, per sign pattern, per weighing.
_PROBES = (math.sqrt(2), math.sqrt(3))
_SIGNS = (math.sqrt(7), math.sqrt(11))
_WEIGHTS = (math.sqrt(5), math.sqrt(13), math.sqrt(17))


def fingerprint(a: Tensor, b: Tensor) -> tuple[float, ...]:
    """Return six numbers of A (r, in) and B (out, r), computed in float64 and rounded to six decimals.

    In order: two probes of A's directions, two of B's, and log2 of the weighted lengths of A's rows and B's columns.
    """
    return (*_side(a.detach()), *_side(b.detach().T))


def fingerprint_of_all(tensors: Sequence[Tensor]) -> tuple[float, float, float]:
    """Return three numbers of many tensors of any shape, in their order: two probes, and their weighted log2 lengths.

    Of each, up to 65,536 elements spread over its rows and columns are read, rounded to bfloat16: so the numbers are
    those of the checkpoint whether it was loaded in float32 or in bfloat16.
    """
    if not tensors:
        return (0.0, 0.0, 0.0)
    sides = []
    for tensor in tensors:
        step, columns = max(1, -(-tensor.numel() // _SAMPLE)), max(1, tensor.shape[-1] if tensor.ndim else 1)
        while math.gcd(step, columns) > 1:  # else some columns would never be read
            step += 1
        sides.append(_side(tensor.detach().reshape(-1)[::step].to("cpu", torch.bfloat16)[None]))
    columns_by_number = torch.tensor(sides, dtype=torch.float64).T  # (3, tensors)
    weighed = (torch.dot(_weights(len(sides), w), c) for w, c in zip(_WEIGHTS, columns_by_number, strict=True))
    first, second, third = (round(float(value), DIGITS) + 0.0 for value in weighed)
    return first, second, third


def agrees(expected: Sequence[float], actual: Sequence[float], *, tolerance: float = FINGERPRINT_TOLERANCE) -> bool:
    """Whether two fingerprints are of the same factors."""
    return len(expected) == len(actual) and all(
        abs(e - a) <= tolerance
        for e, a in zip(expected, actual, strict=True)  # False for NaN
    )


def _side(directions: Tensor) -> tuple[float, ...]:
    d = directions.to("cpu", torch.float64)  # (r, n)
    tiny = torch.finfo(torch.float64).tiny
    length = d.norm(dim=1)  # (r,)
    unit = d / length.clamp_min(tiny)[:, None]
    rank, size = d.shape
    probes = []
    for w, x, sign in zip(_WEIGHTS[:2], _PROBES, _SIGNS, strict=True):
        magnitude = 0.5 + _fraction(size, x)  # entries +-(0.5 .. 1.5), none near zero, so that every direction counts
        probe = torch.where(_fraction(size, sign) < 0.5, magnitude, -magnitude)
        probes.append(torch.dot(_weights(rank, w), unit @ probe))
    log_length = torch.dot(_weights(rank, _WEIGHTS[2]), length).clamp_min(tiny).log2()
    return tuple(round(float(value), DIGITS) + 0.0 for value in (*probes, log_length))  # + 0.0 turns -0.0 into 0.0


def _weights(rank: int, seed: float) -> Tensor:
    """Positive, pairwise different weights of components, of length one; shape (rank,)."""
    w = 0.5 + _fraction(rank, seed)
    return torch.div(w, w.norm())


def _fraction(size: int, seed: float) -> Tensor:
    return torch.frac(torch.mul(torch.arange(1, size + 1, dtype=torch.float64), seed))


ALGORITHM_VERSION: Final = 1  # raise when any change moves the numbers: old files then have other keys
_NAMES: Final = ("left", "singular_values", "right")
_ABOUT: Final = "factors"


def _content_key(weight: Tensor, *, rank: int, basis: str, driver: str) -> str:
    """Return the sha256 of everything the factors depend on: the weight's bytes and how they are decomposed.

    The bytes are those of the checkpoint, also where a half precision was loaded in float32.
    """
    for half in (torch.bfloat16, torch.float16):
        if weight.dtype is torch.float32 and torch.equal(weight.to(half).float(), weight):
            weight = weight.to(half)
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


def _read_factors(path: Path) -> Factors:
    """Read a factor file and verify its checksum.

    Raises:
        FileNotFoundError: there is none.
        IntegrityError: it is truncated, altered, or not a factor file.
        HomeError: it may not be read.
    """
    with disk_faults(path):
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get(_ABOUT, "{}"))
                # Cloned: a mapped file that another program cuts short would kill this process, not raise.
                tensors = {name: file.get_tensor(name).clone() for name in _NAMES}
        except (SafetensorError, json.JSONDecodeError) as error:
            raise IntegrityError(str(error)) from error
    factors = Factors(**tensors, driver=about.get("driver", ""), basis=about.get("basis", ""))
    if about.get("checksum") != checksum(factors):
        raise IntegrityError("the checksum is not that of the content")
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


log = logging.getLogger(__name__)

NUM_SAMPLES = 16
_BYTES_PER_ENTRY = 40  # of a weight in decomposition: itself, U, V and what LAPACK works in, in float64


class FactorStore:
    """A content-addressed store of factors.

    A file's name is the sha256 of the weight's bytes, dtype and shape, and of driver, basis, rank and algorithm
    version. Files are written whole, so processes that compute the same key at once end with one good file. A second
    call with the same unchanged tensor (or one that shares its memory, as tied weights do) reads and hashes nothing.

    Files from a registry are kept apart until they are checked against their weight at first use. Those that do not
    fit are removed with a warning, and never used.

    Args:
        root: Folder of the files; None means `home()/factors`, looked up at each use.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        # Each with its weight's storage, which keeps the address from being given to another tensor meanwhile.
        self._memory: dict[tuple[object, ...], tuple[StorageWeakRef, Factors]] = {}
        self._refused: dict[str, IntegrityError] = {}

    @property
    def root(self) -> Path:
        """Folder that holds the files; it may not exist yet."""
        return self._root if self._root is not None else home() / "factors"

    def get(self, weight: Tensor, *, rank: int, basis: Basis = "top", driver: Driver = "auto") -> Factors:
        """Return the factors of `weight` at exactly `rank`, from memory, from disk, or computed and stored.

        Args:
            weight: Base weight, shape (out, in), any float dtype and device; read, not changed.
            rank: Rank to store; `Factors.ab` cuts it. It is a `factor_bucket` where ranks share a file.
        Raises:
            UsageError, BaseModelError: as `compute_factors`.
            HomeError: the folder cannot be read or written, or is full.
        """
        driver = checked_driver(weight, rank=rank, basis=basis, driver=driver)
        # A weight is known without reading all of it: by its memory, its version, and a sample of its numbers, which
        # notices `weight.data.add_(...)`: that leaves the version counter unchanged.
        flat = weight.detach().flatten() if weight.is_contiguous() else weight.detach().T.flatten()
        sample = tuple(flat[:: max(1, flat.numel() // NUM_SAMPLES)].to("cpu", torch.float64).tolist())
        layout = (weight.storage_offset(), tuple(weight.shape), weight.stride(), weight.dtype)
        version = 0 if weight.is_inference() else weight._version
        identity = (_storage(weight).cdata, version, layout, sample, rank, basis, driver)
        if (remembered := self._memory.get(identity)) is not None:
            return remembered[1]
        key = _content_key(weight, rank=rank, basis=basis, driver=driver)
        path, factors = factor_path(key, self.root), None
        try:
            factors = _read_factors(path)
        except FileNotFoundError:
            pass
        except IntegrityError as damage:
            log.warning("%s is damaged (%s); its factors are computed again.", path, damage.message)
        if factors is None:
            brought = next(self._brought(weight, key, rank=rank, basis=basis, driver=driver), None)
            factors = compute_factors(weight, rank=rank, basis=basis, driver=driver) if brought is None else brought[1]
            write_factors(path, factors)
            if brought is not None:
                brought[0].unlink(missing_ok=True)
        for dead in [own for own, (storage, _) in list(self._memory.items()) if storage.expired()]:  # type: ignore[no-untyped-call]
            self._memory.pop(dead, None)
        self._memory[identity] = _storage(weight), factors
        return factors

    def checkpoint_weight(self, weight: Tensor) -> Tensor:
        """Return the checkpoint's own weight of a layer: the one that is decomposed; itself by default."""
        return weight

    def identify(self, weight: Tensor, *, rank: int, basis: Basis = "top", driver: Driver = "auto") -> tuple[str, str]:
        """Return the key of a weight's factor file, and the checksum of the numbers that `get` gives for it."""
        driver = checked_driver(weight, rank=rank, basis=basis, driver=driver)
        key = _content_key(weight, rank=rank, basis=basis, driver=driver)
        return key, checksum(self.get(weight, rank=rank, basis=basis, driver=driver))

    def variants(
        self, weight: Tensor, *, rank: int, basis: Basis = "top", driver: Driver = "auto"
    ) -> Iterator[tuple[str, Factors]]:
        """Yield factors of the same weight that other machines have made, each with its own short name.

        Singular vectors of nearly equal singular values are only defined up to a rotation: all are equally good, but
        an R has a meaning in one of them only. `loraxs_search.registry` downloads them; they are checked here.

        Raises:
            IntegrityError: after the last one, if factors from a registry were not of this weight and were removed.
        """
        driver = checked_driver(weight, rank=rank, basis=basis, driver=driver)
        key = _content_key(weight, rank=rank, basis=basis, driver=driver)
        for path, brought in self._brought(weight, key, rank=rank, basis=basis, driver=driver):
            write_factors(factor_path(key, self.root, checksum(brought)), brought)
            path.unlink(missing_ok=True)
        for path in sorted(factor_path(key, self.root).parent.glob(f"{key}.*.safetensors")):
            try:
                yield path.suffixes[-2].lstrip("."), _read_factors(path)
            except (IntegrityError, FileNotFoundError) as damage:
                log.warning("%s is damaged (%s); it is skipped.", path, damage)
        if key in self._refused:
            raise self._refused[key]

    def prepare(self, weights: Collection[Tensor], *, rank: int, basis: Basis = "top") -> None:
        """Get the factors of many weights ahead of their use, as many at a time as torch has threads.

        Args:
            weights: Each of shape (out, in).
            rank: Rank to store; a smaller weight is stored at min(out, in).
        """
        largest = max((weight.numel() for weight in weights), default=1)
        fit = available_bytes() // (2 * _BYTES_PER_ENTRY * largest)  # in half the memory
        with side_by_side(max(1, min(torch.get_num_threads(), len(weights), fit))) as pool:
            pending = [pool.submit(self.get, w, rank=min(rank, *w.shape), basis=basis) for w in weights]
            for factors in pending:
                factors.result()

    def _brought(
        self, weight: Tensor, key: str, *, rank: int, basis: Basis, driver: str
    ) -> Iterator[tuple[Path, Factors]]:
        """Yield factors from registries that are this weight's; remove, and remember, those that are not."""
        for path in sorted(factor_path(key, self.root, is_checked=False).parent.glob(f"{key}.*.safetensors")):
            try:
                factors = _read_factors(path)
                wrong = fault(weight, factors, rank=rank, basis=basis, driver=driver)
            except FileNotFoundError:  # another process has stored it
                continue
            except IntegrityError as damage:
                wrong = damage.message
            if wrong is None:
                yield path, factors
                continue
            self._refused[key] = IntegrityError(
                f"A factor file from a registry must be of its weight, but {path.name} is not: {wrong}.",
                hint="tell whoever keeps the registry; it was removed here, and nothing was computed with it",
            )
            log.warning("%s", self._refused[key].message)
            path.unlink(missing_ok=True)


def _storage(weight: Tensor) -> StorageWeakRef:
    return StorageWeakRef(weight.untyped_storage())  # type: ignore[no-untyped-call]

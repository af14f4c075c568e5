"""Factor sets: the factors of a base's weights, registered once for all adapters on it; and their files here.

Nearly equal singular values leave singular vectors free to rotate, so two machines may decompose one weight into
factors that differ. An R trained in one means another model in the other: who loads it needs the very factors. A set is
a logged model in its own experiment, not a registered one: those are tasks. Its files are named by key and
checksum; it only grows. A tag of the experiment says where the set of a base lies. No torch here.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loraxs_search.errors import IntegrityError
from loraxs_search.home import factor_path, write_atomic
from loraxs_search.mlflow_uri import ensure_experiment
from loraxs_search.records.codec import entry_of
from loraxs_search.registry.store import Registry

_NAMES = ("left", "singular_values", "right")


def factors_at(key: str, checksum: str, *, unchecked: bool = False) -> Path | None:
    """Return the file with these factors: this machine's own, or another machine's that were checked here.

    Args:
        unchecked: Look among those too that came from a registry and were not checked yet.
    """
    _check_digests(key, checksum)
    places = [factor_path(key), factor_path(key, None, checksum)]
    places += [factor_path(key, None, checksum, is_checked=False)] * unchecked
    return next((path for path in places if _recorded_checksum(path) == checksum), None)


def install_factors(key: str, content: bytes, root: Path | None = None, *, unchecked: bool = False) -> Path:
    """Put factors where they are looked for, and return the file.

    Those that a host of this search has used become this machine's own where it has none of that key, and lie beside
    its own where it has. Either way what was trained here keeps its meaning.

    Args:
        unchecked: They are from a registry, and put aside until this process has the weight to check them against.
    Raises:
        IntegrityError: the content is no factor file, or its checksum is not that of its numbers.
        HomeError: the folder cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        checksum, tensors, digest = str(entry_of(content, "factors")["checksum"]), load(content), hashlib.sha256()
        for name in _NAMES:
            digest.update(tensors[name].tobytes())
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"A factor file must be safetensors with a checksum, but: {error}.") from error
    if (actual := digest.hexdigest()) != checksum:
        raise IntegrityError(f"A factor file must have checksum {checksum[:16]}..., but got {actual[:16]}...")
    _check_digests(key, checksum)
    path = own = factor_path(key, root)
    if unchecked:
        path = factor_path(key, root, checksum, is_checked=False)
    elif _recorded_checksum(own) == checksum:
        return own
    elif own.exists():
        path = factor_path(key, root, checksum)
    write_atomic(path, content)
    return path


def _check_digests(key: str, checksum: str) -> None:
    for what, digest in (("factor key", key), ("factor checksum", checksum)):
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise IntegrityError(f"`{what}` must be 64 hex digits, but got {digest!r}.", hint="pull the adapter again")


def _recorded_checksum(path: Path) -> str | None:
    """Return the checksum in a factor file's header; None when there is no such file."""
    try:
        return str(entry_of(path, "factors")["checksum"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged file is made anew by whoever needs it


_logger = logging.getLogger(__name__)
_EXPERIMENT = "loraxs-search factors"
_NOTE = (
    "Factors of base models' weights, on which adapters stand: one set for each base. `loraxs-search pull` brings what "
    "an adapter needs. Nobody has to look here."
)
_TAG = "mlflow.loraxs.factors."  # behind it the base's digest and the set's logged model; its value is where files lie
_MAX_BYTES = 2**30  # of one file: a 16384 x 16384 weight at rank 1024 has an eighth of it
_AT_ONCE = 8


def publish(registry: Registry, base_digest: str, base_id: str, factors: Mapping[str, str]) -> None:
    """Add the factors that an adapter stands on to its base's set, those that are there whole already excepted.

    Args:
        factors: Key to checksum, as the manifest has them. Files that this machine lacks are left out, with a notice.
    """
    here = {f"{key}-{checksum[:16]}.safetensors": factors_at(key, checksum) for key, checksum in factors.items()}
    missing = [name for name, path in here.items() if path is None]
    if missing:
        _logger.warning("%d factor files of %s are not on this machine and not registered", len(missing), base_id)
    if not any(here.values()):
        return
    client, sets = registry.client, _sets_of(registry, base_digest)
    if not sets:
        experiment = ensure_experiment(client, registry.uri, _EXPERIMENT, _NOTE)
        tags = {"loraxs.base_digest": base_digest, "loraxs.base_model": base_id}
        name = f"factors-{base_digest[:32]}"
        model = client.create_logged_model(experiment, name=name, model_type="LORAXS-FACTORS", tags=tags)
        model = client.finalize_logged_model(model.model_id, "READY")
        client.set_experiment_tag(experiment, f"{_TAG}{base_digest}.{model.model_id}", model.artifact_location)
        sets = {str(model.model_id): (model.artifact_location, {})}
    known = {name for _, sizes in sets.values() for name in sizes}
    for model_id, (_, sizes) in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            for name, path in here.items():
                is_new = model_id == next(iter(sets)) and name not in known
                # A promoter that was killed, or met a full disk, may have left part of a file.
                is_short = sizes.get(name, 0) not in (0, path.stat().st_size if path else 0)
                if path is not None and (is_new or is_short):
                    (Path(folder) / name).symlink_to(path)
            if any(Path(folder).iterdir()):
                client.log_model_artifacts(model_id, folder)


def bring(registry: Registry, base_digest: str, factors: Mapping[str, str]) -> int:
    """Fetch the factors that this machine lacks from the base's set, and return how many came.

    They are put aside: whoever loads the base checks them against its weights before they are used.

    Raises:
        IntegrityError: a file is not what its name says; it is not kept.
    """
    missing = {key: checksum for key, checksum in factors.items() if not factors_at(key, checksum, unchecked=True)}
    if not missing:
        return 0
    sets = _sets_of(registry, base_digest)
    if not sets:
        _logger.warning("the registry has no factors of base %s: they are computed here", base_digest[:16])
        return 0
    files = {name: (source, size) for source, sizes in sets.values() for name, size in sizes.items()}

    def fetch(key: str) -> int:
        name = f"{key}-{missing[key][:16]}.safetensors"
        if name not in files:
            return 0
        source, size = files[name]
        with tempfile.TemporaryDirectory() as folder:
            content = registry.fetch_file(source, name, Path(folder), size or _MAX_BYTES).read_bytes()
        install_factors(key, content, unchecked=True)
        if not factors_at(key, missing[key], unchecked=True):
            raise IntegrityError(
                f"Factor file {name} must have checksum {missing[key][:16]}..., but it has another.",
                hint="tell whoever keeps the registry",
            )
        return 1

    with ThreadPoolExecutor(_AT_ONCE, "factors") as threads:
        return sum(threads.map(fetch, missing))


def _sets_of(registry: Registry, base_digest: str) -> dict[str, tuple[str, dict[str, int]]]:
    """Return where the files of a base's sets lie and their sizes by name, by logged model.

    There is one set, or several where promoters made one each. One has no files if nothing has been logged yet.
    """
    prefix, tags, sets = f"{_TAG}{base_digest}.", registry.experiment_tags(_EXPERIMENT), {}
    for tag in sorted(tag for tag in tags if tag.startswith(prefix)):
        listed = registry.list_files(tags[tag])
        sizes = {name: num_bytes for name, num_bytes in listed.items() if num_bytes is not None}
        for name, size in sizes.items():
            if size > _MAX_BYTES:
                raise IntegrityError(f"Factor file {name} must have at most {_MAX_BYTES:,} bytes, but got {size:,}.")
        sets[tag.removeprefix(prefix)] = tags[tag], sizes
    return sets

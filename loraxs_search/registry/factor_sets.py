"""Factor sets: the factors of a base's weights, registered once for all adapters on it; and their files here.

Nearly equal singular values leave singular vectors free to rotate, so two machines may decompose one weight into
factors that differ. An R trained in one means another model in the other: who loads it needs the very factors. A set is
a logged model in its own experiment, not a registered one: those are tasks. Its files are named by key and
checksum; it only grows. A tag of the experiment says where the set of a base lies. No torch here.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loraxs_search.errors import IntegrityError
from loraxs_search.home import factor_path, factor_variant_path, unchecked_factor_path, write_atomic
from loraxs_search.mlflow_uri import ensure_experiment
from loraxs_search.registry.reads import StoreReader
from loraxs_search.registry.versions import is_sha256
from loraxs_search.safetensors_header import entry_of

_NAMES = ("left", "singular_values", "right")


def lacks_factors(key: str, checksum: str) -> bool:
    """Whether this machine has no factors of that key with these numbers, checked or not."""
    if factors_at(key, checksum) is not None:
        return False
    return _recorded_checksum(unchecked_factor_path(key, checksum)) != checksum


def factors_at(key: str, checksum: str) -> Path | None:
    """Return the file with these factors: this machine's own, or another machine's that were checked here."""
    _checked(checksum, "factor checksum")
    for path in (factor_path(_checked(key)), factor_variant_path(key, checksum)):
        if _recorded_checksum(path) == checksum:
            return path
    return None


def install_factors(key: str, content: bytes, root: Path | None = None) -> Path:
    """Put factors that a host of this search has used where they are looked for, and return the file.

    They become this machine's own where it has none of that key; beside its own where it has. Either way what was
    trained here keeps its meaning.

    Raises:
        IntegrityError: the content is no factor file, or its checksum is not that of its numbers.
        HomeError: the folder cannot be written.
    """
    checksum = _true_checksum(content)
    own = factor_path(_checked(key), root)
    path = factor_variant_path(key, checksum, root) if own.exists() else own
    if _recorded_checksum(own) == checksum:
        return own
    write_atomic(path, content)
    return path


def keep_unchecked(key: str, content: bytes, root: Path | None = None) -> Path:
    """Put factors from a registry aside until this process has the weight to check them against, and return the file.

    Raises:
        IntegrityError: the content is no factor file, or its checksum is not that of its numbers.
        HomeError: the folder cannot be written.
    """
    path = unchecked_factor_path(_checked(key), _true_checksum(content), root)
    write_atomic(path, content)
    return path


def _checked(digest: str, what: str = "factor key") -> str:
    if not is_sha256(digest):
        raise IntegrityError(f"`{what}` must be 64 hex digits, but got {digest!r}.", hint="pull the adapter again")
    return digest


def _recorded_checksum(path: Path) -> str | None:
    """Return the checksum in a factor file's header; None when there is no such file."""
    try:
        return str(entry_of(path, "factors")["checksum"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged file is made anew by whoever needs it


def _true_checksum(content: bytes) -> str:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        recorded = entry_of(content, "factors")["checksum"]
        tensors = load(content)
        digest = hashlib.sha256()
        for name in _NAMES:
            digest.update(tensors[name].tobytes())
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"A factor file must be safetensors with a checksum, but: {error}.") from error
    if digest.hexdigest() != recorded:
        raise IntegrityError(
            f"A factor file must have checksum {recorded[:16]}..., but got {digest.hexdigest()[:16]}..."
        )
    return str(recorded)


_logger = logging.getLogger(__name__)
_EXPERIMENT = "loraxs-search factors"
_NOTE = (
    "Factors of base models' weights, on which adapters stand: one set for each base. `loraxs-search pull` brings what "
    "an adapter needs. Nobody has to look here."
)
_TAG = "mlflow.loraxs.factors."  # behind it the base's digest and the set's logged model; its value is where files lie
_MAX_BYTES = 2**30  # of one file: a 16384 x 16384 weight at rank 1024 has an eighth of it
_AT_ONCE = 8


def publish(store: StoreReader, base_digest: str, base_id: str, factors: Mapping[str, str]) -> None:
    """Add the factors that an adapter stands on to its base's set, those that are there whole already excepted.

    Args:
        factors: Key to checksum, as the manifest has them. Files that this machine lacks are left out, with a notice.
    """
    here = {_file_name(key, checksum): factors_at(key, checksum) for key, checksum in factors.items()}
    missing = [name for name, path in here.items() if path is None]
    if missing:
        _logger.warning("%d factor files of %s are not on this machine and not registered", len(missing), base_id)
    if not any(here.values()):
        return
    client, factor_sets = store.client, sets_of(store, base_digest)
    if not factor_sets:
        experiment = ensure_experiment(client, store.uri, _EXPERIMENT, _NOTE)
        tags = {"loraxs.base_digest": base_digest, "loraxs.base_model": base_id}
        name = f"factors-{base_digest[:32]}"
        model = client.create_logged_model(experiment, name=name, model_type="LORAXS-FACTORS", tags=tags)
        model = client.finalize_logged_model(model.model_id, "READY")
        client.set_experiment_tag(experiment, f"{_TAG}{base_digest}.{model.model_id}", model.artifact_location)
        factor_sets = {str(model.model_id): model.artifact_location}
    listed = {model_id: _listed(store, source) for model_id, source in factor_sets.items()}
    for model_id, sizes in listed.items():
        with tempfile.TemporaryDirectory() as folder:
            for name, path in here.items():
                is_new = model_id == next(iter(listed)) and not any(name in others for others in listed.values())
                # A promoter that was killed, or met a full disk, may have left part of a file.
                is_short = sizes.get(name, 0) not in (0, path.stat().st_size if path else 0)
                if path is not None and (is_new or is_short):
                    (Path(folder) / name).symlink_to(path)
            if any(Path(folder).iterdir()):
                client.log_model_artifacts(model_id, folder)


def bring(store: StoreReader, base_digest: str, factors: Mapping[str, str]) -> int:
    """Fetch the factors that this machine lacks from the base's set, and return how many came.

    They are put aside: whoever loads the base checks them against its weights before they are used.

    Raises:
        IntegrityError: a file is not what its name says; it is not kept.
    """
    missing = {key: checksum for key, checksum in factors.items() if lacks_factors(key, checksum)}
    if not missing:
        return 0
    factor_sets = sets_of(store, base_digest)
    if not factor_sets:
        _logger.warning("the registry has no factors of base %s: they are computed here", base_digest[:16])
        return 0
    sources = factor_sets.values()
    files = {name: (source, size) for source in sources for name, size in _listed(store, source).items()}

    def fetch(key: str) -> int:
        name = _file_name(key, missing[key])
        if name not in files:
            return 0
        source, size = files[name]
        with tempfile.TemporaryDirectory() as folder:
            content = store.fetch_file(source, name, Path(folder), size or _MAX_BYTES).read_bytes()
        keep_unchecked(key, content)
        if lacks_factors(key, missing[key]):
            raise IntegrityError(
                f"Factor file {name} must have checksum {missing[key][:16]}..., but it has another.",
                hint="tell whoever keeps the registry",
            )
        return 1

    with ThreadPoolExecutor(_AT_ONCE, "factors") as threads:
        return sum(threads.map(fetch, missing))


def sets_of(store: StoreReader, base_digest: str) -> dict[str, str]:
    """Return where the files of a base's sets lie, by logged model: one, or several where promoters made one each."""
    prefix, tags = f"{_TAG}{base_digest}.", store.experiment_tags(_EXPERIMENT)
    return {key.removeprefix(prefix): tags[key] for key in sorted(tags) if key.startswith(prefix)}


def _listed(store: StoreReader, source: str) -> dict[str, int]:
    """Return the files of a set and their sizes; none if nothing has been logged yet."""
    sizes = {file.name: file.num_bytes for file in store.list_files(source) if not file.is_dir}
    for name, size in sizes.items():
        if size > _MAX_BYTES:
            raise IntegrityError(f"Factor file {name} must have at most {_MAX_BYTES:,} bytes, but got {size:,}.")
    return sizes


def _file_name(key: str, checksum: str) -> str:
    return f"{key}-{checksum[:16]}.safetensors"

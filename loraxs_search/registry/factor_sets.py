"""Factor sets: the factors of a base's weights, registered once for all adapters on it.

Nearly equal singular values leave singular vectors free to rotate, so two machines may decompose one weight into
factors that differ. An R trained in one means another model in the other: who loads it needs the very factors. A set is
a registered model `factors-<base digest>` whose files are named by key and checksum; it only grows.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraxs_search.errors import IntegrityError, RegistryError
from loraxs_search.registry import _rest, _versions
from loraxs_search.registry._artifacts import fetch_file, list_files
from loraxs_search.registry._client import connect
from loraxs_search.registry.factor_files import factors_at, keep_unchecked, lacks_factors

if TYPE_CHECKING:
    from mlflow import MlflowClient

_logger = logging.getLogger(__name__)
_FACTORS = "factors"
_EXPERIMENT = "loraxs-search factors"
_MAX_BYTES = 2**30  # of one file: a 16384 x 16384 weight at rank 1024 has an eighth of it
_AT_ONCE = 8


def set_name(base_digest: str) -> str:
    """Return the registered model that holds the factors of a base."""
    return f"factors-{base_digest[:32]}"


def publish(client: MlflowClient, uri: str, base_digest: str, base_id: str, factors: Mapping[str, str]) -> None:
    """Add the factors that an adapter stands on to its base's set, those that are there already excepted.

    Args:
        factors: Key to checksum, as the manifest has them. Files that this machine lacks are left out, with a notice.
    """
    here = {f"{key}-{checksum[:16]}.safetensors": factors_at(key, checksum) for key, checksum in factors.items()}
    missing = [name for name, path in here.items() if path is None]
    if missing:
        _logger.warning("%d factor files of %s are not on this machine and not registered", len(missing), base_id)
    if not any(here.values()):
        return
    source, model_id = _set_for(client, uri, base_digest, base_id)
    registered = set(_listed(source, uri))
    new = {name: path for name, path in here.items() if path is not None and name not in registered}
    if not new:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, path in new.items():
            (Path(folder) / name).symlink_to(path)
        client.log_model_artifacts(model_id, folder)


def bring(uri: str, base_digest: str, factors: Mapping[str, str]) -> int:
    """Fetch the factors that this machine lacks from the base's set, and return how many came.

    They are put aside: whoever loads the base checks them against its weights before they are used.

    Raises:
        IntegrityError: a file is not what its name says; it is not kept.
    """
    missing = {key: checksum for key, checksum in factors.items() if lacks_factors(key, checksum)}
    if not missing:
        return 0
    factor_set = _known(uri, base_digest)
    if factor_set is None:
        _logger.warning("the registry has no factors of base %s: they are computed here", base_digest[:16])
        return 0
    source, _ = factor_set
    sizes = _listed(source, uri)
    wanted = [(key, checksum, f"{key}-{checksum[:16]}.safetensors") for key, checksum in missing.items()]
    with ThreadPoolExecutor(_AT_ONCE, "factors") as threads:
        return sum(threads.map(lambda item: _fetch(source, uri, sizes, *item) if item[2] in sizes else False, wanted))


def _fetch(source: str, uri: str, sizes: Mapping[str, int], key: str, checksum: str, name: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        content = fetch_file(uri, source, name, Path(folder), sizes[name] or _MAX_BYTES).read_bytes()
    keep_unchecked(key, content)
    if lacks_factors(key, checksum):
        raise IntegrityError(
            f"Factor file {name} must have checksum {checksum[:16]}..., but it has another.",
            hint="tell whoever keeps the registry",
        )
    return True


def _listed(source: str, uri: str) -> dict[str, int]:
    """Return the files of a set and their sizes; none where nothing has been logged yet."""
    sizes = {file.name: file.num_bytes for file in list_files(uri, source) if not file.is_dir}
    for name, size in sizes.items():
        if size > _MAX_BYTES:
            raise IntegrityError(f"Factor file {name} must have at most {_MAX_BYTES:,} bytes, but got {size:,}.")
    return sizes


def _known(uri: str, base_digest: str) -> tuple[str, str] | None:
    """Return what `_find` does; a server is asked without MLflow."""
    return _rest.plainly(
        uri,
        lambda: _checked(_rest.find_first_version(uri, set_name(base_digest)), base_digest),
        lambda: _find(connect(uri), base_digest),
    )


def _find(client: MlflowClient, base_digest: str) -> tuple[str, str] | None:
    """Return source and logged model of a base's set: its first version, where two promoters have made two."""
    page = client.search_model_versions(
        f"name = '{set_name(base_digest)}'", max_results=1, order_by=["version_number ASC"]
    )
    return _checked(page[0] if page else None, base_digest)


def _checked(version: Any | None, base_digest: str) -> tuple[str, str] | None:
    if version is None:
        return None
    if version.tags.get("loraxs.base_digest") != base_digest:
        raise RegistryError(f"{set_name(base_digest)} in the registry must be of base {base_digest}, but is not.")
    return version.source, version.tags[_versions.MODEL_ID]


def _set_for(client: MlflowClient, uri: str, base_digest: str, base_id: str) -> tuple[str, str]:
    factor_set = _find(client, base_digest)
    if factor_set is not None:
        return factor_set
    name = set_name(base_digest)
    experiment = _versions.ensure_experiment(client, uri, _EXPERIMENT)
    model = client.create_logged_model(experiment, name=name, model_type="LORAXS-FACTORS")
    model = client.finalize_logged_model(model.model_id, "READY")
    _versions.ensure_model(client, name, _FACTORS)
    tags = {"loraxs.base_digest": base_digest, "loraxs.base_model": base_id}
    _versions.add_version(client, uri, name, model, tags)
    factor_set = _find(client, base_digest)
    assert factor_set is not None  # made the line before
    return factor_set

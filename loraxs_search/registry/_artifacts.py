"""Files of a logged model in the store: listed and fetched, by plain requests where a server hands them out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from loraxs_search.registry import _rest


@dataclass(frozen=True)
class Listed:
    """A file, or a folder, as the store lists it; a store that does not know a file's size says 0."""

    name: str
    num_bytes: int
    is_dir: bool


def list_files(uri: str, source: str) -> list[Listed]:
    """Return what lies in `source`; nothing where nothing has been logged yet."""

    def ask() -> list[Listed]:
        files = _rest.list_files(uri, source)
        return [Listed(str(f["path"]), int(f.get("file_size", 0)), bool(f.get("is_dir"))) for f in files]

    def by_client() -> list[Listed]:
        from mlflow.artifacts import list_artifacts

        listed = list_artifacts(artifact_uri=source, tracking_uri=uri)
        return [Listed(PurePosixPath(file.path).name, file.file_size or 0, file.is_dir) for file in listed]

    return _rest.plainly(uri, ask, by_client)


def fetch_file(uri: str, source: str, name: str, folder: Path, max_bytes: int) -> Path:
    """Fetch a file of `source` into `folder`, and return it there.

    Raises:
        IntegrityError: it has more than `max_bytes`; a plain download ends there, MLflow's is measured afterwards.
        HomeError: `folder` cannot be written.
    """

    def ask() -> Path:
        _rest.fetch_file(uri, source, name, folder / name, max_bytes)
        return folder / name

    def by_client() -> Path:
        from mlflow.artifacts import download_artifacts

        place = f"{source.rstrip('/')}/{name}"
        path = Path(download_artifacts(artifact_uri=place, dst_path=str(folder), tracking_uri=uri))
        _rest.check_size(uri, name, path.stat().st_size, max_bytes)
        return path

    return _rest.plainly(uri, ask, by_client)

"""The base model, as named and as found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseModelRef:
    """A base model as a user names it.

    Args:
        id: Hub id (`org/name`) or a local folder.
        revision: Hub commit, tag or branch; pinned to a commit when located.
        package: Python distribution that carries the same files; used when it is installed.
        sha256: Expected digest of the weight file; a different file is refused.
    """

    id: str
    revision: str | None = None
    package: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class BaseModel:
    """A base model that was found on this machine.

    Args:
        id: Hub id or folder, as named.
        path: Folder with config, weights and tokenizer on this machine.
        weight_digest: sha256 of the weight file; of the sorted list of digests when sharded.
        revision: Hub commit, when it came from the hub.
    """

    id: str
    path: str
    weight_digest: str
    revision: str | None = None


@dataclass(frozen=True)
class LinearModule:
    """A linear layer that an adapter can attach to; `name` is the full module path in the task model."""

    name: str
    in_features: int
    out_features: int

    @property
    def smaller_side(self) -> int:
        """The largest rank that its weight can have."""
        return min(self.in_features, self.out_features)

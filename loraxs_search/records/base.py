"""The base model as named and as found, and the identity of what a study was measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from loraxs_search.records.literals import SECTION, Text, matching

_SHOWN = 16  # hexadecimal digits of a digest


@dataclass(frozen=True)
class BaseModelRef:
    """The frozen model. `base_model: ID` is short for `base_model: {id: ID}`."""

    __pydantic_config__ = SECTION

    id: Text
    """Id on the Hugging Face hub, or a folder. A path that starts with `.`, `~` or `/` is relative to the space's file.
    """
    revision: Text | None = None
    """Commit, tag or branch on the hub."""
    package: Text | None = None
    """Installed Python package that carries the model, as safetensors or GGUF. `sentence-transformers/all-MiniLM-L6-v2`
    is found in its package without this key.
    """
    sha256: Annotated[Text, matching("[0-9a-f]{64}", "must be 64 hexadecimal digits in lower case")] | None = None
    """Digest of the weights, 64 hexadecimal digits. Other weights are refused."""


@dataclass(frozen=True)
class BaseSetup:
    """How a base is set up, beside its weights: nothing of it shows in their digest.

    Args:
        tokenizer: Digest of what the tokenizer does, its chat template included; empty where there is none.
        config: What the configuration says of the numbers; a field of a field has both names, with a point between.
    """

    tokenizer: str
    config: Mapping[str, str | float | bool | None]

    def difference(self, actual: BaseSetup) -> str:
        """Describe where another base differs, with both values; empty where it does not.

        Fields that one of them lacks are not compared: versions of transformers add some.
        """
        unlike = [
            f"`{name}` {json.dumps(actual.config[name])}, not {json.dumps(value)}"
            for name, value in self.config.items()
            if name in actual.config and actual.config[name] != value
        ]
        if "" not in (self.tokenizer, actual.tokenizer) and self.tokenizer != actual.tokenizer:
            unlike.append(f"tokenizer {actual.tokenizer[:16]}, not {self.tokenizer[:16]}")
        return " and ".join(unlike)


@dataclass(frozen=True)
class BaseModel:
    """A base model that was found on this machine.

    Args:
        id: Hub id or folder, as named.
        path: Folder with config, weights and tokenizer on this machine.
        weight_digest: sha256 of the weight file; of the sorted list of digests when sharded.
        revision: Hub commit, when it came from the hub.
        setup: None if tokenizer and configuration were not looked at.
    """

    id: str
    path: str
    weight_digest: str
    revision: str | None = None
    setup: BaseSetup | None = field(default=None, hash=False)


@dataclass(frozen=True)
class LinearModule:
    """A linear layer that an adapter can attach to; `name` is the full module path in the task model."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Identity:
    """Base and data by content, as a study began with them: a path, a name or a version identifies nothing.

    Args:
        base_digest: Of the base's weights.
        data_fingerprint: Of the texts and labels of all splits.
        setup: The base's; None if tokenizer and configuration were not looked at.
    """

    base_digest: str
    data_fingerprint: str
    setup: BaseSetup | None = None

    def difference(self, actual: Identity) -> str:
        """Describe where base or data differ from these, with both values; empty where they agree."""
        values = {
            "weight digest": (self.base_digest, actual.base_digest),
            "data fingerprint": (self.data_fingerprint, actual.data_fingerprint),
        }
        differs = [f"{name} {now[:_SHOWN]}, not {was[:_SHOWN]}" for name, (was, now) in values.items() if now != was]
        if self.setup and actual.setup and (unlike := self.setup.difference(actual.setup)):
            differs.append(f"another base: {unlike}")
        return " and ".join(differs)

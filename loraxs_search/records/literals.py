"""Words that several records share, and the laws of the keys that a space file writes into records."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

Scalar = str | int | float | bool
ParameterKind = Literal["int", "float", "flag", "name", "modules", "scalar"]  # of a parameter's values
Direction = Literal["maximize", "minimize"]
Sigma = Literal["input", "sqrt", "output", "none"]
Basis = Literal["top", "middle", "bottom", "gaussian"]
SVD_BASES: tuple[Basis, ...] = ("top", "middle", "bottom")  # of the weight's own singular vectors
Head = Literal["full", "output"]
Pooling = Literal["auto", "class", "cls", "mean", "last"]  # `auto` stands only in a space: a launch resolves it
HeadInit = Literal["probe", "random"]
LrSchedule = Literal["linear", "cosine", "constant"]
Split = Literal["train", "validation", "test"]
Precision = Literal["auto", "float32", "bfloat16"]
SearchDevice = Literal["auto", "gpu", "cpu"]

MAX_AUTO_PACK_SIZE = 64  # the largest pack that `pack_size: auto` takes

# How pydantic reads a record that is a section of a space file. The docstrings of such a record and of its fields stand
# in search_spaces/REFERENCE.md and in the JSON Schema.
SECTION = {"extra": "forbid", "strict": True, "allow_inf_nan": False, "use_attribute_docstrings": True}
DERIVED = {"derived": True}  # metadata of a field that no file writes: it follows from other keys


class Law:
    """What a value must be, as pydantic reads it: importing pydantic itself takes 60 ms, and `--help` needs none of it.

    Args:
        read: Makes the value of what is written, before its type is checked; raises ValueError with the law.
        json_schema: For editors, where what is written differs from the value.
        bounds: As pydantic's core schemas name them: `ge`, `gt`, `le`, `lt`, `min_length`.
    """

    def __init__(
        self, read: Callable[[Any], Any] | None = None, json_schema: Mapping[str, Any] | None = None, **bounds: Any
    ) -> None:
        self.read, self.json_schema, self.bounds = read, json_schema, bounds

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        schema = {**handler(source), **self.bounds}
        if self.read is None:
            return schema
        return {"type": "function-before", "function": {"type": "no-info", "function": self.read}, "schema": schema}

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return handler(schema) if self.json_schema is None else dict(self.json_schema)


def sign_of(direction: Direction) -> float:
    """Return what turns a score so that more is better."""
    return 1.0 if direction == "maximize" else -1.0


def factor_bucket(rank: int) -> int:
    """Return the rank at which factors are stored for an adapter of `rank`: a power of two, at least 64.

    So adapters of many ranks share one file.
    """
    return max(64, 1 << (rank - 1).bit_length())


def _as_number(value: object) -> object:
    """Return `1e-3`, which YAML 1.1 reads as text since it has no dot, as the number that is meant."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) else value


Count = Annotated[int, Law(ge=1)]
Text = Annotated[str, Law(min_length=1)]
NotNegative = Annotated[float, Law(_as_number, ge=0)]
Confidence = Annotated[float, Law(_as_number, ge=0, lt=1)]


def matching(pattern: str, law: str) -> Law:
    """Return the law of a text that matches a pattern; `law` is the pattern in words."""

    def read(value: object) -> object:
        if isinstance(value, str) and value and not re.fullmatch(pattern, value):
            raise ValueError(law)
        return value

    return Law(read, {"type": "string", "pattern": f"^{pattern}$"})


def distinct(names: Any) -> Any:
    """Return names that all look different: an accent may be its own character.

    Raises:
        ValueError: one stands twice.
    """
    texts = [name for name in names if isinstance(name, str)] if isinstance(names, list | tuple) else []
    shown = [unicodedata.normalize("NFC", name) for name in texts]
    for index, name in enumerate(shown):
        if name in shown[:index]:
            raise ValueError(f"must name each once, without a second {name!r}")
    return names

"""How records are written and read: the words and laws of their fields, JSON, JSON in a safetensors file, ids."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from loraxs_search.errors import StudyError, shortened

# ---- words that several records share, and the laws of the keys that a space file writes into records ----------------
Scalar = str | int | float | bool
ParameterKind = Literal["int", "float", "flag", "name", "modules", "scalar"]  # of a parameter's values
Direction = Literal["maximize", "minimize"]
Sigma = Literal["input", "sqrt", "output", "none"]
Basis = Literal["top", "middle", "bottom", "gaussian"]
SVD_BASES: tuple[Basis, ...] = ("top", "middle", "bottom")  # of the weight's own singular vectors
Head = Literal["full", "output"]
Pooling = Literal["auto", "class", "cls", "mean", "last"]  # `auto` stands only in a space: a launch resolves it
HeadInit = Literal["probe", "random"]
StoredDtype = Literal["int8", "float16", "float32"]
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
Accuracy = Annotated[float, Law(_as_number, gt=0, lt=1)]


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


# ---- JSON ------------------------------------------------------------------------------------------------------------
RecordT = TypeVar("RecordT")


def to_json(record: Any, *, indent: int | None = None, sort_keys: bool = True) -> str:
    """Return a record (or a list of them) as JSON; without `sort_keys` in the order of fields and mappings."""
    return json.dumps(record, default=_plain, indent=indent, sort_keys=sort_keys)


def from_json(cls: type[RecordT], text: str | bytes) -> RecordT:
    """Rebuild a record from JSON, checking every field's type.

    Raises:
        pydantic.ValidationError: the text is not such a record.
    """
    return _adapter(cls).validate_json(text)  # type: ignore[no-any-return, arg-type]


@functools.cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter  # late: keeps `import loraxs_search` light

    return TypeAdapter(cls)  # a millisecond, and a journal holds thousands of reports


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a record")


# ---- JSON in the header of a safetensors file, read without the library, torch or numpy ------------------------------
# The file begins with the length of a JSON header in 8 bytes, little-endian, and the header; its `__metadata__` maps
# strings to strings. We keep one entry there, itself JSON, since safetensors writes several in no fixed order.
MAX_HEADER_BYTES = 100 * 10**6  # the library's own limit on a header


def entry_of(source: Path | bytes, name: str) -> Any:
    """Return an entry of a file's metadata, as the JSON that it holds.

    Args:
        source: A file, of which only the header is read, or the bytes of one.
    Raises:
        ValueError: it is no safetensors file, or its metadata has no such entry.
        OSError: it cannot be read.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        header = _header(file)
    try:
        return json.loads(header["__metadata__"][name])
    except (KeyError, TypeError):
        raise ValueError(f"its metadata must have an entry {name!r}, but has none") from None


def numbers_by_dtype(path: Path) -> dict[str, int]:
    """Return how many numbers of each type a file's tensors have, by the type's name there (`BF16`, `F32`).

    Raises:
        ValueError: it is no safetensors file.
        OSError: it cannot be read.
    """
    numbers: dict[str, int] = {}
    with path.open("rb") as file:
        header = _header(file)
    for tensor in (value for name, value in header.items() if name != "__metadata__"):
        numbers[tensor["dtype"]] = numbers.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return numbers


def _header(file: BinaryIO) -> dict[str, Any]:
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header must have at most {MAX_HEADER_BYTES:,} bytes, but has {length:,}")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"its header must be a mapping, but is {type(header).__name__}")
    return header


# ---- ids that become file names --------------------------------------------------------------------------------------
_TRIAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


def check_trial_id(trial_id: str) -> str:
    """Return the id of a trial, `00007`, or of a refit, `00007.1`.

    Raises:
        StudyError: it is another text.
    """
    if not _TRIAL.fullmatch(trial_id):
        raise StudyError(
            f"A trial's id must be digits, as `status` shows them, but got {shortened(trial_id)}.",
            hint="`loraxs-search status` lists trials by id",
        )
    return trial_id

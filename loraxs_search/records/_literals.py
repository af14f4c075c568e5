"""Words that several records share, and their values."""

from __future__ import annotations

from typing import Literal

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

MAX_STATE_BYTES = 64_000_000  # of weights, moments and reports of a trial, to travel with each report
MAX_AUTO_PACK_SIZE = 64  # the largest pack that `pack_size: auto` takes

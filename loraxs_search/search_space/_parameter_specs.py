"""The parameters a space may search, and the law each of their values keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from loraxs_search.records import Basis, Head, LrSchedule, Scalar, Sigma
from loraxs_search.search_space._faults import one_of
from loraxs_search.search_space._modules import GROUPS, parse_expression


@dataclass(frozen=True)
class ParameterSpec:
    """What one value of a parameter must be.

    Args:
        low: Least value; itself allowed unless `above`.
        high: Largest value; itself allowed unless `below`.
        names: The words allowed, for a parameter of kind `name`.
    """

    kind: Literal["int", "float", "name", "modules"]
    low: float = 0.0
    above: bool = False
    high: float = math.inf
    below: bool = False
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.kind == "modules":
            return f"a module group ({one_of(GROUPS)}, or module names joined by +; @last-K for the last K layers)"
        if self.kind == "name":
            return f"one of: {one_of(self.names)}"
        noun = "an integer" if self.kind == "int" else "a number"
        if self.below:
            return f"{noun} of at least {self.low:g} and below {self.high:g}"
        if self.high < math.inf:
            return f"{noun} in {self.low:g}..{self.high:g}"
        return f"{noun} above {self.low:g}" if self.above else f"{noun} of at least {self.low:g}"

    def check(self, value: object) -> Scalar:
        """Return `value` in the parameter's own type.

        Raises:
            ValueError: it breaks the law; the message states the law.
        """
        if self.kind == "modules":
            return self._expression(value)
        if self.kind == "name":
            if value not in self.names:
                raise ValueError(f"must be one of: {one_of(self.names, value)}")
            return str(value)
        return self._number(value)

    def same(self, one: Scalar, other: Scalar) -> bool:
        """Whether two checked values mean the same; `query+value` is `value+query`."""
        if self.kind != "modules":
            return one == other
        left, right = parse_expression(str(one)), parse_expression(str(other))
        return (set(left.groups), left.last) == (set(right.groups), right.last)

    def _expression(self, value: object) -> str:
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            value = "+".join(value)
        if not isinstance(value, str):
            raise ValueError(f"must be {self}")
        return str(parse_expression(value))

    def _number(self, value: object) -> Scalar:
        number = _as_float(value) if self.kind == "float" else value
        wanted = int if self.kind == "int" else float
        if isinstance(number, bool) or not isinstance(number, wanted):
            raise ValueError(f"must be {self}")
        # Written so that NaN, which compares as false, is refused; infinity is no value even where there is no limit.
        if not self.low <= number <= self.high or number == math.inf:
            raise ValueError(f"must be {self}")
        if (self.above and number == self.low) or (self.below and number == self.high):
            raise ValueError(f"must be {self}")
        return number


def _as_float(value: object) -> object:
    # YAML 1.1 reads `1e-3` (no dot) as text; people mean the number. `True` is an int to Python, not to people.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return value
    try:
        return float(value)
    except (ValueError, OverflowError):
        return value


PARAMETER_SPECS: Mapping[str, ParameterSpec] = {
    "rank": ParameterSpec("int", low=1, high=65536),
    "scale": ParameterSpec("float", above=True),
    "target_modules": ParameterSpec("modules"),
    "sigma": ParameterSpec("name", names=get_args(Sigma)),
    "basis": ParameterSpec("name", names=get_args(Basis)),
    "head": ParameterSpec("name", names=get_args(Head)),
    "init_std": ParameterSpec("float"),
    "learning_rate": ParameterSpec("float", above=True),
    "head_learning_rate": ParameterSpec("float", above=True),
    "weight_decay": ParameterSpec("float"),
    "adam_beta1": ParameterSpec("float", high=1.0, below=True),
    "adam_beta2": ParameterSpec("float", high=1.0, below=True),
    "lr_schedule": ParameterSpec("name", names=get_args(LrSchedule)),
    "warmup_ratio": ParameterSpec("float", high=1.0),
    "max_grad_norm": ParameterSpec("float"),
    "batch_size": ParameterSpec("int", low=1, high=65536),
}
REQUIRED = ("rank", "learning_rate")

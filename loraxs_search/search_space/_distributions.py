"""What a parameter's value may be, and how a trial draws it. Plain frozen records: they pickle and compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from loraxs_search.records import Scalar

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Constant:
    """One value; Optuna never hears of it."""

    value: Scalar

    @property
    def values(self) -> Sequence[Scalar]:
        return (self.value,)

    @property
    def size(self) -> int | None:
        return 1

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        return self.value

    def to_optuna(self) -> BaseDistribution | None:
        return None


@dataclass(frozen=True)
class Choice:
    """One of several values without an order, all of one type."""

    choices: tuple[Scalar, ...]

    @property
    def values(self) -> Sequence[Scalar]:
        return self.choices

    @property
    def size(self) -> int | None:
        return len(self.choices)

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        value: Scalar = trial.suggest_categorical(name, list(self.choices))  # type: ignore[assignment]
        return value

    def to_optuna(self) -> BaseDistribution | None:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.choices)


@dataclass(frozen=True)
class Integers:
    """Integers `low, low + step, ..., high`; with `log` drawn evenly in the logarithm."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    @property
    def values(self) -> Sequence[Scalar]:
        return range(self.low, self.high + 1, self.step)

    @property
    def size(self) -> int | None:
        return len(self.values)

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def to_optuna(self) -> BaseDistribution | None:
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True)
class Floats:
    """Numbers in [low, high], in steps if `step` is given; with `log` drawn evenly in the logarithm."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def values(self) -> Sequence[Scalar] | None:
        """None: a condition cannot hang on a number that may take any value."""
        return None

    @property
    def size(self) -> int | None:
        if self.step is None:
            return None
        # Decimal, as in Optuna: 0.1 has no exact float.
        return int((Decimal(str(self.high)) - Decimal(str(self.low))) / Decimal(str(self.step))) + 1

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def to_optuna(self) -> BaseDistribution | None:
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


Distribution = Constant | Choice | Integers | Floats


@dataclass(frozen=True)
class Parameter:
    """A parameter of a space.

    Args:
        when: Parameter name to the values it must have for this one to be present; all must hold. A parent that is
            itself absent does not hold.
        otherwise: The value when the condition does not hold; None leaves the parameter out, and the record's default
            stands.
    """

    name: str
    distribution: Distribution
    when: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()
    otherwise: Scalar | None = None

    @property
    def possible(self) -> Sequence[Scalar] | None:
        """Every value a trial may show, or None when there is no list of them."""
        values = self.distribution.values
        if values is None or self.otherwise is None or self.otherwise in values:
            return values
        return (*values, self.otherwise)

    def present(self, params: dict[str, Scalar]) -> bool:
        """Whether the condition holds for what has been drawn so far."""
        return all(other in params and params[other] in values for other, values in self.when)

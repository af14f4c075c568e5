"""What a parameter's value may be, how a trial draws it, and which configurations there are.

Plain frozen records, which are stored and compared without Optuna: it takes half a second to import. Configurations are
counted, conditions included, without listing them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from graphlib import TopologicalSorter
from itertools import chain
from math import isclose
from typing import TYPE_CHECKING, Any, Literal

from loraxs_search.records.literals import Scalar

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial


Same = Callable[[Scalar, Scalar], bool]  # whether two values of a parameter mean the same
METHOD = "method"  # the parameter that spaces of several methods have
PARAMETERS = "parameters"  # the section


@dataclass(frozen=True)
class Distribution:
    """What a parameter's value may be, and how a trial draws it.

    Args:
        form: A `constant`, of which Optuna never hears; one of several values without an order, all of one type; or a
            range, drawn evenly, in steps if there is a step, or evenly in the logarithm.
        choices: Of a constant its one value.
    """

    form: Literal["constant", "choice", "int", "float"]
    choices: tuple[Scalar, ...] = ()
    low: int | float = 0
    high: int | float = 0
    step: int | float | None = None
    log: bool = False

    def __str__(self) -> str:
        if self.choices:
            known = ", ".join(map(str, self.choices))
            return known if self.form == "constant" else f"one of {known}"
        return f"in {self.low:g}..{self.high:g}{f' by {self.step:g}' if self.step not in (None, 1) else ''}"

    @property
    def values(self) -> Sequence[Scalar] | None:
        """Every value; None for a range of numbers, on which no condition can hang."""
        return (
            range(int(self.low), int(self.high) + 1, int(self.step or 1))
            if self.form == "int"
            else self.choices or None
        )

    @property
    def size(self) -> int | None:
        """How many values there are; None without a step."""
        if self.form == "float":  # Decimal, as in Optuna: 0.1 has no exact float
            low, high, step = (Decimal(str(number or 0)) for number in (self.low, self.high, self.step))
            return int((high - low) / step) + 1 if step else None
        return len(self.values or ())

    def find(self, value: Scalar, same: Same) -> Scalar | None:
        """Return the equal value that may be drawn, or None."""
        if self.form != "float":
            known = [value] if self.form == "int" and value in (self.values or ()) else self.choices
            return next((each for each in known if same(each, value)), None)
        if isinstance(value, str) or not self.low <= value <= self.high:
            return None
        steps = (value - self.low) / self.step if self.step else 0.0
        return float(value) if isclose(steps, round(steps), abs_tol=1e-8) else None

    def suggest(self, trial: BaseTrial, name: str) -> Scalar:
        """Draw a value."""
        if self.form == "constant":
            return self.choices[0]
        if self.form == "choice":
            value: Scalar = trial.suggest_categorical(name, list(self.choices))  # type: ignore[assignment]
            return value
        if self.form == "int":
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def optuna(self) -> BaseDistribution:
        """Return Optuna's own; only what is drawn has one."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.form == "choice":
            return CategoricalDistribution(self.choices)
        if self.form == "int":
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


def plain_name(drawn: str) -> str:
    """Return the parameter that Optuna knows by a name that `Parameter.drawn_name` has given."""
    return drawn.partition("[")[0]


Condition = tuple[tuple[str, tuple[Scalar, ...]], ...]  # parameter to the values it must have; all must hold


@dataclass(frozen=True)
class Alternative:
    """One way to draw a parameter.

    Args:
        when: What must hold for it. A parameter that is itself absent does not hold.
    """

    distribution: Distribution
    when: Condition = ()


@dataclass(frozen=True)
class Parameter:
    """A parameter of a space.

    Args:
        alternatives: The first whose condition holds is drawn.
            Where no condition holds, trials are without the parameter, and the record's default stands.
        methods: Those of the space's methods that take it, where some do not: trials of others never have it.
    """

    name: str
    alternatives: tuple[Alternative, ...]
    methods: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """How many values may be drawn; None is a range of numbers."""
        sizes = [alternative.distribution.size for alternative in self.alternatives]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def possible(self) -> Sequence[Scalar] | None:
        """Every value a trial may show, or None when there is no list of them."""
        values = [alternative.distribution.values for alternative in self.alternatives]
        listed = [each for each in values if each is not None]
        if len(listed) < len(values):
            return None
        return listed[0] if len(listed) == 1 else tuple(dict.fromkeys(chain(*listed)))

    def chosen(self, params: Mapping[str, Scalar]) -> int | None:
        """Return the index of the alternative that is drawn after these params; None when none is."""
        if self.methods and params.get(METHOD) not in self.methods:
            return None
        for index, alternative in enumerate(self.alternatives):
            if all(other in params and params[other] in values for other, values in alternative.when):
                return index
        return None

    def drawn_name(self, index: int) -> str:
        """Return the name that Optuna knows an alternative by; the first has the parameter's own."""
        return f"{self.name}[{index}]" if index else self.name

    def parents(self) -> list[str]:
        """Return the parameters that must be drawn before it."""
        implied = [METHOD] if self.methods else []
        return implied + [other for alternative in self.alternatives for other, _ in alternative.when]

    def of_methods(self, methods: Sequence[str], known: Container[str]) -> Parameter | None:
        """Return the parameter as trials of some methods have it, conditions on methods resolved; None if they lack it.

        Args:
            known: Other parameters that such trials have; where a condition needs another, it never holds.
        """
        takers = tuple(method for method in methods if not self.methods or method in self.methods)
        resolved, left = list[Alternative](), takers
        for each in self.alternatives:
            asked = dict(each.when).get(METHOD, takers)
            fitting = tuple(method for method in left if method in asked)
            others = tuple(condition for condition in each.when if condition[0] != METHOD)
            if fitting and all(other in known for other, _ in others):
                when = others if fitting == left else (*others, (METHOD, fitting))
                resolved.append(replace(each, when=when))
                left = left if others else tuple(method for method in left if method not in fitting)
        return Parameter(self.name, tuple(resolved), () if takers == tuple(methods) else takers) if resolved else None

    def written(self) -> Any:
        """Return the parameter as a space file writes it."""
        forms = list[Any]()
        for each in self.alternatives:
            own = each.distribution
            if own.form in ("constant", "choice"):
                form: dict[str, Any] = (
                    {"choice": list(own.choices)} if own.form == "choice" else {"value": own.choices[0]}
                )
            elif own.form == "int":
                form = {"int": [own.low, own.high], "step": own.step, "log": own.log}
            else:
                form = {"log_uniform" if own.log else "uniform": [own.low, own.high]}
                form |= {"step": own.step} if own.step else {}
            when = {other: list(values) for other, values in each.when}
            forms.append({**form, "when": when} if when else form.get("value", form))
        return forms if len(forms) > 1 else forms[0]


def drawing_order(parameters: Iterable[Parameter], later: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the names so that each parameter comes after those its condition needs; the file's order otherwise.

    Args:
        later: Names that come after another one too.
    Raises:
        graphlib.CycleError: the conditions go in a circle.
    """
    # No sets: their order would differ between processes, and with it what is drawn.
    graph = {
        p.name: dict.fromkeys([*p.parents(), *([later[p.name]] if later and p.name in later else [])])
        for p in parameters
    }
    return tuple(name for name in TopologicalSorter(graph).static_order() if name in graph)


def parameters_of(parameters: Mapping[str, Parameter], methods: Sequence[str]) -> dict[str, Parameter]:
    """Return the parameters of the trials of some methods, without the choice of the method, in the file's order.

    Raises:
        graphlib.CycleError: the conditions go in a circle.
    """
    known: dict[str, Parameter] = {}
    for name in drawing_order(parameters.values()):
        parameter = parameters[name].of_methods(methods, known)
        if parameter is not None and name != METHOD:
            known[name] = parameter
    return {name: known[name] for name in parameters if name in known}


def branches_of(
    parameters: Mapping[str, Parameter], distinct: Mapping[str, set[Scalar]]
) -> Iterator[tuple[dict[str, Scalar], int]]:
    """Yield each way in which conditions can fall, with the number of configurations that fall so.

    A parameter branches into its distinct values and one branch, in which it is not listed, for all its others: an
    integer range of thousands costs as much as the few values that conditions mention.
    """
    branches: list[tuple[dict[str, Scalar], int]] = [({}, 1)]
    for name in drawing_order(parameters.values()):
        parameter, grown = parameters[name], []
        for params, weight in branches:
            index = parameter.chosen(params)
            if index is None:
                grown.append((params, weight))
                continue
            distribution = parameter.alternatives[index].distribution
            values = distribution.values or ()
            named = [value for value in sorted(distinct.get(name, ()), key=str) if value in values]
            grown += [(params | {name: value}, weight) for value in named]
            others = (distribution.size or 1) - len(named)
            if others:
                grown.append((params, weight * others))
        branches = grown
    yield from branches


def mentioned_values(parameters: Mapping[str, Parameter]) -> dict[str, set[Scalar]]:
    """The values of each parameter that some condition asks for."""
    mentioned: dict[str, set[Scalar]] = {}
    for parameter in parameters.values():
        for alternative in parameter.alternatives:
            for other, values in alternative.when:
                mentioned.setdefault(other, set()).update(values)
    return mentioned

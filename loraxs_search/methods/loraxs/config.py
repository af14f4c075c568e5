"""What a LoRA-XS adapter is, as stored in `adapter_config.json`, and at one module.

PEFT registers only methods whose names `PeftType` has, so it is given one.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any, get_args

from peft.config import PeftConfig
from peft.utils import PeftType
from torch import Tensor

from loraxs_search.errors import UsageError
from loraxs_search.factors.compute import Driver, FactorKey, resolve_driver
from loraxs_search.records.codec import Basis, Pooling, Sigma, StoredDtype, factor_bucket

NAME = "LORAXS"
PREFIX = "loraxs_"

if NAME not in PeftType.__members__:
    # An enum is closed once its class exists; these are the three tables and the attribute that CPython's `EnumType`
    # fills for each member, and all that lookup by value, by name and iteration read.
    _member = str.__new__(PeftType, NAME)
    vars(_member).update(
        {"_name_": NAME, "_value_": NAME, "_sort_order_": len(PeftType._member_names_), "__objclass__": PeftType}
    )
    PeftType._member_names_.append(NAME)
    PeftType._member_map_[NAME] = PeftType._value2member_map_[NAME] = _member
    type.__setattr__(PeftType, NAME, _member)
LORAXS = PeftType[NAME]

# PEFT 0.21.2 asks each model for this name, which transformers 5.24 has deprecated; a user can do nothing about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


@dataclass
class LoraXSConfig(PeftConfig):
    """Configuration of a LoRA-XS adapter: delta_W = scale * B R A, R (r, r) trained, A and B from the base weight.

    Trained parameters: the sum of r^2 over the adapted modules.

    Args:
        r: Rank; at most min(out, in) of each module. Cost per token and module is linear in it.
        scale: Factor of the update.
        sigma: Where the singular values go: `input` (A = S V^T, B = U), `sqrt`, `output` or `none`.
        basis: Which singular vectors: `top`, `middle` or `bottom`. Or `gaussian`: A and B are drawn from (init_seed,
            module name), and W decides nothing.
        factor_driver: How factors are computed: `exact`, `randomized`, or `auto` by size. After an adapter is made it
            says what was used, or stays `auto` when its modules differ.
        factor_rank: Rank at which factors are stored and cut to r; None means its `factor_bucket`.
            With the randomised driver it is part of what R means, so keep it when loading.
        init_std: Standard deviation of R at the start; 0 begins at the base model.
        init_seed: R of each module is drawn from (init_seed, module name); None uses torch's global generator,
            which `basis: gaussian` cannot.
        start_from: The asset with another adapter's R, from which a fresh one starts; see `methods.starting`.
        target_modules: Names, name endings, a regex, or `all-linear`; None means PEFT's LoRA default for the model.
        exclude_modules: Names, name endings or a regex never adapted.
        layers_to_transform: Layer indices to adapt; all when None.
        layers_pattern: Name of the list that holds the layers, when it is unusual.
        modules_to_save: Modules trained and saved whole, such as the head.
        pass_through: Layers made the identity when the adapter is put on a model, here or at any load: the rest of a
            head of which only the output layer is trained, a pooler that the base's checkpoint lacks.
        stored_dtype: What R and the head are rounded to in the files of a search. PEFT's own `save_pretrained` writes
            float32 whatever it says, and both are read.
        pooling: What heads read of the last hidden states, put in place like `pass_through`: `class` leaves it to the
            model's class; `cls` is the first token's, `last` the last one's, `mean` the mean over a row's tokens.
        factor_fingerprints: Module name to the fingerprint of its A, B; filled when the adapter is made, compared when
            it is loaded.
        body_fingerprint: Numbers of the whole base below its head; compared, where there are any, when the adapter is
            put on a model.
    """

    r: int = 16
    scale: float = 1.0
    sigma: Sigma = "input"
    basis: Basis = "top"
    factor_driver: Driver = "auto"
    factor_rank: int | None = None
    init_std: float = 1e-5
    init_seed: int | None = None
    start_from: str | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    pass_through: list[str] = field(default_factory=list)
    stored_dtype: StoredDtype = "float32"
    pooling: Pooling = "class"
    factor_fingerprints: dict[str, list[float]] = field(default_factory=dict)
    body_fingerprint: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]  # PEFT annotates its fields only
        self.peft_type = LORAXS
        known = {"sigma": get_args(Sigma), "basis": get_args(Basis), "factor_driver": get_args(Driver)}
        known |= {"stored_dtype": get_args(StoredDtype)}
        known |= {"pooling": tuple(set(get_args(Pooling)) - {"auto"})}
        faults = [
            f"`{name}` must be one of: {', '.join(values)}, but got {getattr(self, name)!r}."
            for name, values in known.items()
            if getattr(self, name) not in values
        ]
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:  # PEFT would adapt all layers
            fault = f"`layers_to_transform` must stand beside a list of modules, but got {self.target_modules!r}."
            faults.append(fault)
        if self.basis == "gaussian" and self.init_seed is None:
            faults.append("`init_seed` must be given with `basis` gaussian: A and B are drawn from it.")
        ranks = {"r": self.r} if self.factor_rank is None else {"r": self.r, "factor_rank": self.factor_rank}
        wrong = [name for name, value in ranks.items() if type(value) is not int or value < 1]
        faults += [f"`{name}` must be a whole number >= 1, but got {ranks[name]!r}." for name in wrong]
        if self.factor_rank is not None and not wrong and self.factor_rank < self.r:
            faults.append(f"`factor_rank` must be at least the rank, but got {self.factor_rank} < {self.r}.")
        for name, least in (("scale", -math.inf), ("init_std", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value) or value < least:
                faults.append(f"`{name}` must be finite{' and >= 0' * (least == 0)}, but got {value!r}.")
        if faults:
            raise UsageError("LoraXSConfig has faults:\n" + "\n".join(f"  - {fault}" for fault in faults))
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                setattr(self, name, set(value))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values in a fixed order: sets sorted, repeated `modules_to_save` dropped."""
        plain: dict[str, Any] = {k: sorted(v) if isinstance(v, set) else v for k, v in super().to_dict().items()}
        if self.modules_to_save is not None:
            plain["modules_to_save"] = list(dict.fromkeys(self.modules_to_save))
        return plain


# Powers of the singular values on the left and right of R that turn each sigma into `none`.
_POWERS: dict[Sigma, tuple[float, float]] = {
    "input": (0.0, 1.0),
    "sqrt": (0.5, 0.5),
    "output": (1.0, 0.0),
    "none": (0.0, 0.0),
}


@dataclass(frozen=True)
class ModuleSettings:
    """Adapter settings of one module.

    Args:
        factor_key: Which factors of the module's weight. The adapter uses their first `rank` components; adapters of
            one key share them, whatever their rank and sigma.
    """

    rank: int
    scale: float
    sigma: Sigma
    factor_key: FactorKey

    @classmethod
    def of(cls, config: LoraXSConfig, module: str, out_features: int, in_features: int) -> ModuleSettings:
        """Return what a config means for the module of this name and size.

        Raises:
            UsageError: the rank is above min(out, in).
        """
        size = min(out_features, in_features)
        if config.r > size:
            raise UsageError(
                f"`r` must be in 1..{size}, but got r={config.r} for {module} ({out_features} x {in_features}).",
                hint=f"use r <= {size}, or leave this module out of target_modules",
            )
        if config.basis == "gaussian":  # its ranks do not nest
            key = FactorKey(config.basis, config.r, "exact", str(config.init_seed))
        else:
            driver = resolve_driver(config.factor_driver, config.basis, out_features, in_features)
            key = FactorKey(config.basis, min(config.factor_rank or factor_bucket(config.r), size), driver)
        return cls(config.r, config.scale, config.sigma, key)

    def scale_core(self, singular_values: Tensor) -> Tensor:
        """Return the factor of each entry of R when A and B are kept orthonormal, shape (rank, rank).

        scale * B R A = U (scale * S^p R S^q) V^T, the powers p and q being those of `sigma`.

        Args:
            singular_values: Of the module's factors, shape (k,), k >= rank.
        """
        left, right = _POWERS[self.sigma]
        s = singular_values[: self.rank]
        return self.scale * s[:, None].pow(left) * s.pow(right)

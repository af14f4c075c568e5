"""One adapted linear layer: y = W x + B (scale R) A x, with A and B frozen and R (r, r) trained.

A and B come from the factor store, or from a seed, and are checked against those that the adapter was trained in; a
process that hosts many trials puts its own store here. R is drawn from a seed, or starts as a registered adapter's.

Shapes: x (..., in), A (k, in), B (out, k), R (r, r), r <= k; k is the rank at which factors are stored. Rows of a batch
may belong to different adapters: they are computed in one pass per factor pair, not in one per adapter.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import ModulesToSaveWrapper
from peft.utils.other import transpose
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from loraxs_search.errors import BaseModelError, FactorMismatchError, RankError, UsageError
from loraxs_search.factors.compute import Factors, gaussian_factors
from loraxs_search.factors.store import FactorStore
from loraxs_search.factors.verify import FINGERPRINT_TOLERANCE, agrees, fingerprint
from loraxs_search.methods.loraxs.config import FactorKey, LoraXSConfig, ModuleSettings
from loraxs_search.methods.names import R
from loraxs_search.methods.starting import start_header, start_tensor

BASE = "__base__"


_stack: list[FactorStore] = [FactorStore()]


def current_factor_store() -> FactorStore:
    """Return the store in use: the innermost `use_factor_store`, else the one under the home folder."""
    return _stack[-1]


@contextlib.contextmanager
def use_factor_store(store: FactorStore) -> Iterator[FactorStore]:
    """Take factors from `store` while the block runs, in every thread of this process."""
    _stack.append(store)
    try:
        yield store
    finally:
        _stack.remove(store)


def drawn_factors(key: FactorKey, module: str, sizes: Sequence[int]) -> Factors:
    """Return A and B of the basis `gaussian` on a module of these sizes (out, in), drawn from a seed and its name."""
    out_features, in_features = sizes
    generator = _generator(f"{key.variant}:{module}:gaussian")
    return gaussian_factors(out_features, in_features, rank=key.factor_rank, generator=generator)


def _generator(of: str) -> torch.Generator:
    digest = hashlib.sha256(of.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def starting_r(
    config: LoraXSConfig, settings: ModuleSettings, module: str, factors: Callable[[], Factors] | None
) -> Tensor:
    """Return R of a new adapter, shape (rank, rank), float32, on the CPU so that every device starts from the same.

    It is the R of the adapter that `start_from` names, where that adapts this module: the same function, at the same
    rank or a larger one. Factors nest, so a smaller R stands in the top left corner and zeros around it; the trial's
    own scale is divided out. Elsewhere it is drawn from N(0, init_std^2).

    Args:
        factors: Returns those of the module's weight; None where a stored R follows, for which nothing is checked.
    Raises:
        FactorMismatchError: the factors are not those of the adapter that it starts from.
        RankError: that adapter's rank is larger.
    """
    digest = None if factors is None else config.start_from
    r = None if digest is None else start_tensor(digest, f"{module}.{R}")
    if factors is None or digest is None or r is None:
        generator = None if config.init_seed is None else _generator(f"{config.init_seed}:{module}")
        return torch.empty(settings.rank, settings.rank).normal_(std=config.init_std, generator=generator)
    header, margin = start_header(digest), settings.rank - r.shape[0]
    expected = header.fingerprints.get(module)
    if expected is not None and not agrees(expected, fingerprint(*factors().ab(r.shape[0], settings.sigma))):
        raise FactorMismatchError(
            f"A trial must have the factors of the adapter that it starts from, but those of {module} differ: this "
            "machine's linear algebra decomposes the weight in another way, or another weight.",
            hint="search on machines like the one that adapter was trained on, or leave out `start_from`",
        )
    if margin < 0:
        raise RankError(
            f"`rank` must be at least that of the adapter it starts from, {r.shape[0]}, but got {settings.rank} for"
            f" {module}.",
            hint="raise the rank in the space, or start from a smaller adapter",
        )
    return pad(r * (header.hyperparameters.scale / settings.scale), (0, margin, 0, margin))


def checked_factors(
    weight: Tensor, settings: ModuleSettings, module: str, fingerprints: dict[str, list[float]]
) -> tuple[Factors, str]:
    """Return the factors of a module's weight (out, in) at their stored rank, and which variant they are.

    The fingerprint of the adapter's own prefix is compared with the one in `fingerprints`, or put there. Where this
    machine's factors are not those of the training, those that another machine made are, if they were brought here.

    Raises:
        FactorMismatchError: the factors are not those that were recorded.
        IntegrityError: those that came from a registry in their place are not of this weight.
        HomeError: factors cannot be stored.
    """
    store, variant = current_factor_store(), ""
    if settings.basis == "gaussian":
        factors, variant = drawn_factors(settings.factor_key, module, weight.shape), settings.variant
    else:
        factors = store.get(weight, rank=settings.factor_rank, basis=settings.basis, driver=settings.driver)
    actual = fingerprint(*factors.ab(settings.rank, settings.sigma))
    if module not in fingerprints:
        fingerprints[module] = list(actual)
        return factors, variant
    expected = fingerprints[module]
    if not variant and not agrees(expected, actual):
        others = store.variants(weight, rank=settings.factor_rank, basis=settings.basis, driver=settings.driver)
        for name, other in others:
            if agrees(expected, fingerprint(*other.ab(settings.rank, settings.sigma))):
                return other, name
        refused = store.refused(weight, rank=settings.factor_rank, basis=settings.basis, driver=settings.driver)
        if refused is not None:
            raise refused
    if not agrees(expected, actual):
        got, wanted = (", ".join(f"{number:.6g}" for number in numbers) for numbers in (actual, expected))
        raise FactorMismatchError(
            f"Factor fingerprints must agree within {FINGERPRINT_TOLERANCE:g}, but {module} got [{got}] where the"
            f" adapter was trained in [{wanted}].",
            hint="load the base model the adapter was trained on (same weights, precision and quantisation), and get "
            "the factors it was trained in with `loraxs-search pull`; "
            "to start a new adapter from this config instead, clear its `factor_fingerprints` and `body_fingerprint`",
        )
    return factors, variant


def grouped_head_output(
    wrapper: ModulesToSaveWrapper, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any, *, adapter_names: list[str]
) -> Tensor | None:
    """Run each row through its own adapter's copy of a module, composite ones too (PEFT's own path takes plain layers).

    A forward hook. The first positional argument is the batch; rows of "__base__", and of adapters without a copy, use
    the original. None, which leaves the output as it is, where adapters are disabled.
    """
    if wrapper.disable_adapters:
        return None
    x, *rest = args
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(adapter_names):
        rows_of.setdefault(name if name in wrapper.modules_to_save else BASE, []).append(row)
    parts = []
    for name, rows in rows_of.items():
        module = wrapper.original_module if name == BASE else wrapper.modules_to_save[name]
        parts.append(module(x[torch.tensor(rows, device=x.device)], *rest, **kwargs))
    order = torch.tensor([row for rows in rows_of.values() for row in rows], device=x.device)
    return torch.cat(parts)[order.argsort()]


class _Float32Parameters(nn.ParameterDict):
    """Follows its model to another device but never to another dtype: R stays float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Float32Parameters:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self


class LoraXSLinear(nn.Module, BaseTunerLayer):
    """`nn.Linear`, `Conv1D` or a quantised linear layer with LoRA-XS adapters; PEFT calls its methods by name.

    Its own name says to PEFT's `all-linear` that it may carry another adapter.

    A and B are buffers outside the state dict, one pair per (driver, basis, sigma, factor rank), in the dtype of the
    base weight; adapters of any rank use prefixes of the pair. They are computed when the adapter is made or, when the
    base weight is still on the meta device, at first use.
    """

    adapter_layer_names = (R,)
    other_param_names = ("settings", "_recorded")

    def __init__(self, base_layer: nn.Module, *, backend: QuantizationBackend | None, fan_in_fan_out: bool) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = backend
        self.loraxs_R = _Float32Parameters({})
        self.loraxs_factors = BufferDict({}, persistent=False)
        self.settings: dict[str, ModuleSettings] = {}
        self._recorded: dict[str, tuple[str, dict[str, list[float]]]] = {}  # this module's name, its config's record
        self._unmerged: Tensor | None = None
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        base = self.get_base_layer()
        self.fan_in_fan_out = isinstance(base, Conv1D) or (fan_in_fan_out and not isinstance(base, nn.Linear))
        in_features, out_features = _get_in_out_features(base)
        assert in_features is not None and out_features is not None  # known of every linear layer
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus the active adapters' updates.

        Args:
            x: Input, shape (..., in).
            adapter_names: One adapter name (or "__base__") per row of x; then each row gets its own adapter.
        """
        if adapter_names is not None:
            if len(adapter_names) != len(x):  # these two in PEFT's words
                raise ValueError(
                    "Length of `adapter_names` should be the same as the number of inputs, but got "
                    f"{len(adapter_names)} and {len(x)} respectively."
                )
            if self.merged:
                raise ValueError(
                    "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
                )
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)  # (..., out)
        if self.quantization_backend is not None:
            y = self.quantization_backend.maybe_clone_base_result(y)
        if self.disable_adapters or self.merged:
            return y
        if adapter_names is not None:
            return self._mixed_update(x, y, adapter_names)
        for name in self.active_adapters:
            if name in self.loraxs_R:
                a, b = self.factor_pair(name)
                z = linear(self._cast_input_dtype(x, a.dtype), a)  # (..., r); a is frozen: x is not kept for backward
                z = linear(z, self.scaled_r(name).to(z.dtype))  # (..., r)
                y = y + linear(z, b).to(y.dtype)  # (..., out)
        return y

    def update_layer(self, adapter_name: str, settings: ModuleSettings, config: LoraXSConfig, module: str) -> None:
        """Add an adapter, or replace the one of this name.

        Args:
            config: Its config; the fingerprint of this module is checked against it, or recorded in it.
            module: Full name of this layer in the base model.
        Raises:
            FactorMismatchError: the config was made for other factors.
            UsageError: the weight is merged, so its factors cannot be computed.
        """
        self.settings[adapter_name] = settings
        self._recorded[adapter_name] = (module, config.factor_fingerprints)
        is_fresh = module not in config.factor_fingerprints
        if self._base_device().type != "meta":
            self._load_pair(adapter_name)
        own = partial(self.factors_of, adapter_name) if is_fresh else None
        self.loraxs_R[adapter_name] = nn.Parameter(starting_r(config, settings, module, own))
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def factor_pair(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Return A (r, in) and B (out, r) of an adapter, views of the shared pair, in the base weight's dtype."""
        settings = self.settings[adapter_name]
        if f"A_{settings.pair_name}" not in self.loraxs_factors:
            settings = self._load_pair(adapter_name)
        a = self.loraxs_factors[f"A_{settings.pair_name}"][: settings.rank]
        b = self.loraxs_factors[f"B_{settings.pair_name}"][:, : settings.rank]
        return a, b

    def scaled_r(self, adapter_name: str) -> Tensor:
        """Return scale * R, shape (r, r), float32, attached to the graph."""
        return torch.mul(self.loraxs_R[adapter_name], self.settings[adapter_name].scale)

    def core(self, adapter_name: str) -> Tensor:
        """Return the core between orthonormal factors: scale * R, multiplied by the singular values, shape (r, r)."""
        r, settings = self.loraxs_R[adapter_name], self.settings[adapter_name]
        return torch.mul(r, settings.scale_core(self.factors_of(adapter_name).singular_values).to(r.device))

    def factors_of(self, adapter_name: str) -> Factors:
        """Return the factors of the base weight that an adapter was trained in, at their stored rank."""
        own = self.settings[adapter_name]
        factors, _ = checked_factors(self._weight_to_decompose(), own, *self._recorded[adapter_name])
        return factors

    def to_lora(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Return the same update as LoRA factors: A (r, in) and scale * B R (out, r), float32, no decomposition."""
        a, b = self.factor_pair(adapter_name)
        return a.float().contiguous(), torch.mm(b.float(), self.scaled_r(adapter_name).detach())

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return scale * B R A in float32, laid out as the layer stores its weight."""
        lora_a, lora_b = self.to_lora(adapter_name)
        return transpose(torch.mm(lora_b, lora_a), self.fan_in_fan_out)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Return True: the update is additive. `pull --format lora` converts exactly, PEFT's own converter by SVD."""
        return True

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, and the factors that no other adapter uses."""
        super().delete_adapter(adapter_name)
        used = {f"{side}_{s.pair_name}" for s in self.settings.values() for side in "AB"}
        for name in [n for n in self.loraxs_factors if n not in used]:
            del self.loraxs_factors[name]

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base weight, summed in float32; the original weight is kept for `unmerge`.

        Raises:
            ValueError: `safe_merge` is set and the merged weight would not be finite; the weight is unchanged.
        """
        new = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.loraxs_R]
        if not new:
            return
        base = self.get_base_weight()
        # From the original, so that a second merge in low precision does not round twice.
        start = base if self._unmerged is None else self._unmerged
        adapters = new if self._unmerged is None else [*self.merged_adapters, *new]
        merged = self._plus(start, adapters, sign=1.0)
        if safe_merge and not torch.isfinite(merged).all():
            # PEFT's own words, which tools may look for; infinity counts too.
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {', '.join(new)} seems to be broken: merged weights "
                "must be finite, but some are NaN or infinite."
            )
        if self.quantization_backend is None:
            self._unmerged = start
        self.set_base_weight(merged)
        self.merged_adapters.extend(new)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Bring back the base weight: the very same numbers, or for a quantised base by subtraction."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        base = self.get_base_weight()
        original = self._unmerged
        self.set_base_weight(
            self._plus(base, self.merged_adapters, sign=-1.0) if original is None else original.to(base)
        )
        self._unmerged = None
        self.merged_adapters.clear()

    def _mixed_update(self, x: Tensor, y: Tensor, adapter_names: Sequence[str]) -> Tensor:
        """Add to each row of y (n, ..., out) the update of the adapter that the row names.

        Rows are grouped by factor pair; within a group A and B are applied once, cut to the largest rank, and R_k,
        padded with zeros, by one batched product.
        """
        groups: dict[str, list[int]] = {}
        for row, name in enumerate(adapter_names):
            if name in self.settings:
                groups.setdefault(self.settings[name].pair_name, []).append(row)
        for rows in groups.values():
            index = torch.tensor(rows, device=x.device)
            distinct = list(dict.fromkeys(adapter_names[row] for row in rows))
            a, b = self.factor_pair(max(distinct, key=lambda name: self.settings[name].rank))  # (k, in), (out, k)
            margins = [a.shape[0] - self.settings[name].rank for name in distinct]
            padded = [pad(self.scaled_r(n), (0, more, 0, more)) for n, more in zip(distinct, margins, strict=True)]
            which = torch.tensor([distinct.index(adapter_names[row]) for row in rows], device=x.device)
            r_nkk = torch.stack(padded).to(a.dtype)[which]  # (n, k, k)
            z = linear(x[index].to(a.dtype), a)  # (n, ..., k)
            z = torch.bmm(z.flatten(1, -2) if z.ndim > 2 else z[:, None], r_nkk.transpose(1, 2)).reshape(z.shape)
            y = y.index_add(0, index, linear(z, b).to(y.dtype))
        return y

    def _plus(self, weight: Tensor, adapter_names: Sequence[str], *, sign: float) -> Tensor:
        total = weight.float()
        for name in adapter_names:
            total = total + sign * self.get_delta_weight(name)
        return total.to(weight.dtype)

    def _load_pair(self, adapter_name: str) -> ModuleSettings:
        weight = self._weight_to_decompose()
        own = self.settings[adapter_name]
        factors, variant = checked_factors(weight, own, *self._recorded[adapter_name])
        settings = self.settings[adapter_name] = replace(own, variant=variant)
        if f"A_{settings.pair_name}" not in self.loraxs_factors:
            a, b = factors.ab(settings.factor_rank, settings.sigma)
            self.loraxs_factors[f"A_{settings.pair_name}"] = a.to(weight.device, weight.dtype)
            self.loraxs_factors[f"B_{settings.pair_name}"] = b.to(weight.device, weight.dtype)
        return settings

    def _weight_to_decompose(self) -> Tensor:
        if self.merged:
            raise UsageError(
                f"Factors must come from the base weight, but it holds the merged adapters {self.merged_adapters}.",
                hint="call unmerge_adapter() before adding another adapter",
            )
        if self.quantization_backend is None:
            # Not `weight.data`: only `detach` shares the version counter that tells the store of changes in place.
            weight = cast("Tensor", self.get_base_layer().weight)  # `nn.Module` types any attribute as Tensor | Module
            return transpose(weight.detach(), self.fan_in_fan_out)
        try:
            return transpose(self.get_base_weight().detach(), self.fan_in_fan_out)
        except (TypeError, NotImplementedError) as error:
            raise BaseModelError(
                f"A base weight must be readable to be decomposed, but {self.quantization_backend.backend_name} "
                f"layers cannot be dequantised: {error}",
                hint="use an unquantised base, or one quantised with bitsandbytes, HQQ or torchao",
            ) from error

    def _base_device(self) -> torch.device:
        base = self.get_base_layer()  # quantised layers keep their numbers under their own names
        return next(chain(base.parameters(), base.buffers())).device

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        target = self._base_device() if device is None else device
        if adapter_name in self.loraxs_R and target.type != "meta" and not self.loraxs_R[adapter_name].is_meta:
            r = self.loraxs_R[adapter_name]
            r.data = r.data.to(target, torch.float32)

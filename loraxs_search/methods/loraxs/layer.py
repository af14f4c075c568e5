"""One adapted linear layer: y = W x + B (scale R) A x, with A and B frozen and R (r, r) trained.

A and B come from the factor store, or from a seed, and are checked against those that the adapter was trained in; a
process that hosts many trials puts its own store here. R is drawn from a seed, or starts as a registered adapter's.

Shapes: x (..., in), A (k, in), B (out, k), R (r, r), r <= k; k is the rank at which factors are stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from loraxs_search.base_model.layers import matrix
from loraxs_search.errors import BaseModelError, UsageError
from loraxs_search.factors.compute import FactorKey, Factors
from loraxs_search.factors.store import FINGERPRINT_TOLERANCE, FactorStore, agrees, fingerprint
from loraxs_search.methods._base import R
from loraxs_search.methods.loraxs.config import LoraXSConfig, ModuleSettings
from loraxs_search.methods.starting import StartHeader, start_tensor

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


def _generator(of: str) -> torch.Generator:
    digest = hashlib.sha256(of.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def factors_for(weight: Tensor, key: FactorKey, module: str, store: FactorStore) -> Factors:
    """Return the factors of a module's weight (out, in): the store's or, of the basis `gaussian`, drawn.

    A (rank, in) and B (out, rank) are then random in place of singular vectors, and all singular values are one. Each
    entry is normal with variance 1 / fan-in (Kaiming): in for A, rank for B, so the ranks do not nest.

    Source: arXiv 2405.17604, the control of its ablation; its code draws uniformly, with the variances of Kaiming too.
    """
    if key.basis != "gaussian":
        return store.get(weight, rank=key.rank, basis=key.basis, driver=key.driver)
    (out_features, in_features), generator = weight.shape, _generator(f"{key.variant}:{module}:gaussian")
    a = torch.randn(key.rank, in_features, dtype=torch.float64, generator=generator) / in_features**0.5
    b = torch.randn(out_features, key.rank, dtype=torch.float64, generator=generator) / key.rank**0.5
    return Factors(b.float(), torch.ones(key.rank), a.float(), driver=key.driver, basis=key.basis)


def starting_r(
    config: LoraXSConfig, settings: ModuleSettings, module: str, factors: Callable[[], Factors] | None
) -> Tensor:
    """Return R of a new adapter, shape (rank, rank), float32, on the CPU so that every device starts from the same.

    It is the R of the adapter that `start_from` names, where that adapts this module: the same function, at the same
    rank or a larger one. Factors nest, so a smaller R stands in the top left corner and zeros around it; the trial's
    own scale is divided out. Elsewhere it is drawn from N(0, init_std^2). Of a search's adapter, whose R its file
    gives, it is NaN: a loader that does not find it there, such as transformers' own `load_adapter`, must not answer.

    Args:
        factors: Returns those of the module's weight; None where a stored R follows, for which nothing is checked.
    Raises:
        BaseModelError: the factors are not those of the adapter that it starts from.
        UsageError: that adapter's rank is larger.
    """
    digest = None if factors is None else config.start_from
    r = None if digest is None else start_tensor(digest, f"{module}.{R}")
    if factors is None and config.body_fingerprint:
        return torch.full((settings.rank, settings.rank), torch.nan)
    if factors is None or digest is None or r is None:
        generator = None if config.init_seed is None else _generator(f"{config.init_seed}:{module}")
        return torch.empty(settings.rank, settings.rank).normal_(std=config.init_std, generator=generator)
    header, margin = StartHeader.of(digest), settings.rank - r.shape[0]
    expected = header.fingerprints.get(module)
    if expected is not None and not agrees(expected, fingerprint(*factors().ab(r.shape[0], settings.sigma))):
        raise BaseModelError(
            f"A trial must have the factors of the adapter that it starts from, but those of {module} differ: this "
            "machine's linear algebra decomposes the weight in another way, or another weight.",
            hint="search on machines like the one that adapter was trained on, or leave out `start_from`",
        )
    if margin < 0:
        raise UsageError(
            f"`rank` must be at least that of the adapter it starts from, {r.shape[0]}, but got {settings.rank} for"
            f" {module}.",
            hint="raise the rank in the space, or start from a smaller adapter",
        )
    return pad(r * (header.hyperparameters.scale / settings.scale), (0, margin, 0, margin))


def checked_factors(
    weight: Tensor, settings: ModuleSettings, module: str, fingerprints: dict[str, list[float]]
) -> tuple[Factors, FactorKey]:
    """Return the factors of a module's weight (out, in) at their stored rank, and the key that names their variant.

    The fingerprint of the adapter's own prefix is compared with the one in `fingerprints`, or put there. Where this
    machine's factors are not those of the training, those that another machine made are, if they were brought here.

    Raises:
        BaseModelError: the factors are not those that were recorded.
        IntegrityError: those that came from a registry in their place are not of this weight.
        HomeError: factors cannot be stored.
    """
    store, key = current_factor_store(), settings.factor_key
    if key.basis != "gaussian":
        key = key._replace(variant="")
    factors = factors_for(weight, key, module, store)
    actual = fingerprint(*factors.ab(settings.rank, settings.sigma))
    expected = fingerprints.setdefault(module, list(actual))
    if agrees(expected, actual):
        return factors, key
    if key.basis != "gaussian":
        for name, other in store.variants(weight, rank=key.rank, basis=key.basis, driver=key.driver):
            if agrees(expected, fingerprint(*other.ab(settings.rank, settings.sigma))):
                return other, key._replace(variant=name)
    got, wanted = (", ".join(f"{number:.6g}" for number in numbers) for numbers in (actual, expected))
    raise BaseModelError(
        f"Factor fingerprints must agree within {FINGERPRINT_TOLERANCE:g}, but {module} got [{got}] where the"
        f" adapter was trained in [{wanted}].",
        hint="load the base model the adapter was trained on (same weights and precision), and get the factors it was"
        " trained in with `loraxs-search pull`; to start a new adapter from this config instead, clear its"
        " `factor_fingerprints` and `body_fingerprint`",
    )


class _Float32Parameters(nn.ParameterDict):
    """Follows its model to another device but never to another dtype: R stays float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Float32Parameters:
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self


class LoraXSLinear(nn.Module, BaseTunerLayer):
    """`nn.Linear` or `Conv1D` with LoRA-XS adapters; PEFT calls its methods by name.

    Its own name says to PEFT's `all-linear` that it may carry another adapter.

    A and B are buffers outside the state dict, one pair per factor key and sigma, in the dtype of the base weight;
    adapters of any rank use prefixes of the pair.

    Args:
        module: Full name of this layer in the base model.
    """

    adapter_layer_names = (R,)
    other_param_names = ("settings", "_recorded")

    def __init__(self, base_layer: nn.Module, module: str) -> None:
        super().__init__()
        self.base_layer, self.module = base_layer, module
        self.loraxs_R = _Float32Parameters({})
        self.loraxs_factors = BufferDict({}, persistent=False)
        self.settings: dict[str, ModuleSettings] = {}
        self._recorded: dict[str, dict[str, list[float]]] = {}  # each config's fingerprints
        self._unmerged: Tensor | None = None
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.out_features, self.in_features = matrix(self.get_base_layer()).shape

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the base layer's output plus the active adapters' updates, for x of shape (..., in)."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)  # (..., out)
        if self.disable_adapters or self.merged:
            return y
        for name in self.active_adapters:
            if name in self.loraxs_R:
                a, b = self.factor_pair(name)
                z = linear(self._cast_input_dtype(x, a.dtype), a)  # (..., r); a is frozen: x is not kept for backward
                z = linear(z, (self.loraxs_R[name] * self.settings[name].scale).to(z.dtype))  # (..., r)
                y = y + linear(z, b).to(y.dtype)  # (..., out)
        return y

    def update_layer(self, adapter_name: str, settings: ModuleSettings, config: LoraXSConfig) -> None:
        """Add an adapter, or replace the one of this name.

        Args:
            config: Its config; the fingerprint of this module is checked against it, or recorded in it.
        Raises:
            BaseModelError: the config was made for other factors.
            UsageError: the weight is merged, so its factors cannot be computed.
        """
        is_fresh = self.module not in config.factor_fingerprints
        self.settings[adapter_name], self._recorded[adapter_name] = settings, config.factor_fingerprints
        factors, key = checked_factors(self._weight_to_decompose(), settings, self.module, config.factor_fingerprints)
        self.settings[adapter_name] = replace(settings, factor_key=key)
        names, weight = self._pair_names(adapter_name), cast("Tensor", self.get_base_layer().weight)
        if names[0] not in self.loraxs_factors:
            for name, side in zip(names, factors.ab(key.rank, settings.sigma), strict=True):
                self.loraxs_factors[name] = side.to(weight)
        r = starting_r(config, settings, self.module, (lambda: factors) if is_fresh else None)
        self.loraxs_R[adapter_name] = nn.Parameter(r)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def factor_pair(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Return A (r, in) and B (out, r) of an adapter, views of the shared pair, in the base weight's dtype."""
        rank, (a, b) = self.settings[adapter_name].rank, self._pair_names(adapter_name)
        return self.loraxs_factors[a][:rank], self.loraxs_factors[b][:, :rank]

    def core(self, adapter_name: str) -> Tensor:
        """Return the core between orthonormal factors: scale * R, multiplied by the singular values, shape (r, r)."""
        r, settings = self.loraxs_R[adapter_name], self.settings[adapter_name]
        weight, recorded = self._weight_to_decompose(), self._recorded[adapter_name]
        factors, _ = checked_factors(weight, settings, self.module, recorded)  # those that it was trained in
        return torch.mul(r, settings.scale_core(factors.singular_values).to(r.device))

    def to_lora(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        """Return the same update as LoRA factors: A (r, in) and scale * B R (out, r), float32, no decomposition."""
        a, b = self.factor_pair(adapter_name)
        scaled_r = self.loraxs_R[adapter_name].detach() * self.settings[adapter_name].scale
        return a.float().contiguous(), torch.mm(b.float(), scaled_r)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """Return scale * B R A in float32, laid out as the layer stores its weight."""
        lora_a, lora_b = self.to_lora(adapter_name)
        delta = torch.mm(lora_b, lora_a)
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, and the factors that no other adapter uses."""
        super().delete_adapter(adapter_name)
        used = {name for adapter in self.settings for name in self._pair_names(adapter)}
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
        # From the original, so that a second merge in low precision does not round twice.
        start = self.get_base_weight() if self._unmerged is None else self._unmerged
        total = start.float()
        for name in [*self.merged_adapters, *new]:
            total = total + self.get_delta_weight(name)
        merged = total.to(start.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            # PEFT's own words, which tools may look for; infinity counts too.
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {', '.join(new)} seems to be broken: merged weights "
                "must be finite, but some are NaN or infinite."
            )
        self._unmerged = start
        self.set_base_weight(merged)
        self.merged_adapters.extend(new)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Bring back the base weight, the very same numbers."""
        if self._unmerged is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.set_base_weight(self._unmerged.to(self.get_base_weight()))
        self._unmerged = None
        self.merged_adapters.clear()

    def _pair_names(self, adapter_name: str) -> tuple[str, str]:
        own = self.settings[adapter_name]
        shared = "_".join(map(str, (*own.factor_key, own.sigma)))
        return f"A_{shared}", f"B_{shared}"

    def _weight_to_decompose(self) -> Tensor:
        if self.merged:
            raise UsageError(
                f"Factors must come from the base weight, but it holds the merged adapters {self.merged_adapters}.",
                hint="call unmerge_adapter() before adding another adapter",
            )
        # Not `weight.data`: only `detach` shares the version counter that tells the store of changes in place.
        return matrix(self.get_base_layer()).detach()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        if adapter_name in self.loraxs_R and not self.loraxs_R[adapter_name].is_meta:  # as with `low_cpu_mem_usage`
            r, target = self.loraxs_R[adapter_name], cast("Tensor", self.get_base_layer().weight).device
            r.data = r.data.to(target if device is None else device, torch.float32)

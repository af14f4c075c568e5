"""LoRA-XS: delta_W = scale * B R A, with A and B from the base weight's SVD and R (r, r) trained.

What it means to a search; the PEFT tuner that computes it is `methods/loraxs/`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

from loraxs_search.assets import START
from loraxs_search.errors import UsageError
from loraxs_search.manifest import Manifest
from loraxs_search.methods._base import (
    ADAPTER,
    BYTES_PER_PARAMETER,
    FILES,
    NO_ALPHA,
    NONE,
    ROOT,
    SCALE,
    Modules,
    PackedAdapter,
    Params,
    Possible,
    R,
    Shapes,
    Sizes,
    check_ranks,
    file_bytes,
)
from loraxs_search.methods._peft import PeftMethod
from loraxs_search.methods.starting import StartHeader
from loraxs_search.plugins import ParameterSpec
from loraxs_search.records.codec import Basis, Scalar, Sigma, StoredDtype, factor_bucket, to_json
from loraxs_search.records.trial import AdapterSize, Hyperparameters

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from loraxs_search.factors.compute import FactorKey
    from loraxs_search.factors.store import FactorStore
    from loraxs_search.methods._base import HeadPlan, Linears, Packing, PlainLora
    from loraxs_search.methods.loraxs import LoraXSConfig

_RANKS = sorted(range(1, 65), key=lambda rank: abs(math.log2(rank / 16)))  # of the recipe: the first that a space has
_RATE_TIMES_RANK, _MAX_RATE = 0.128, 6.4e-2
_DTYPES = {"int8": "I8", "float16": "F16", "float32": "F32"}  # as safetensors names them


class LoraXS(PeftMethod):
    """delta_W = scale * B R A, with A and B from the SVD of W, and R, r x r, trained.

    R starts at N(0, init_std^2) from the trial's seed and each module's name; A and B come from the factor store.
    """

    name: str = "lora-xs"
    title: str = "LoRA-XS"
    symbol: str = "R"
    description: str = "R (trained between frozen factors)"
    note: ClassVar[str] = (
        "The matrices R mean something only between the factors of this very base model: loading checks that."
    )
    parameters: Mapping[str, ParameterSpec] = MappingProxyType(
        {
            "rank": ParameterSpec("int", low=1, high=65536, about="r, the rows and columns of R."),
            "scale": ParameterSpec(
                "float",
                above=True,
                default=Hyperparameters.scale,
                about="Factor of the update, alpha / r. There is no `alpha`: with a fixed alpha, a larger rank"
                " would learn more slowly.",
            ),
            "sigma": ParameterSpec(
                "name",
                names=get_args(Sigma),
                default=Hyperparameters.sigma,
                about="Where W's singular values go: into A (`input`, as in the paper), into B (`output`), their"
                " roots into both (`sqrt`), or nowhere (`none`).",
            ),
            "basis": ParameterSpec(
                "name",
                names=get_args(Basis),
                default=Hyperparameters.basis,
                about="Which of W's singular vectors: the `top`, `middle` or `bottom` ones. `gaussian` draws A"
                " and B from the trial's seed, the paper's control.",
            ),
            "init_std": ParameterSpec(
                "float", default=Hyperparameters.init_std, about="Standard deviation of R at the start."
            ),
            "stored_dtype": ParameterSpec(
                "name",
                names=get_args(StoredDtype),
                default="int8",
                about="What R and the head are rounded to before they are scored and stored; trials train in float32."
                " `int8` has one scale for each R, and for each row of the head; `float16` leaves the head in float32.",
            ),
        }
    )
    not_offered: Mapping[str, str] = NO_ALPHA
    can_start: ClassVar[bool] = True
    sized_by: tuple[str, ...] = ("rank", "basis", "stored_dtype")
    packs: ClassVar[bool] = True
    serves_in_bank: ClassVar[bool] = True
    has_plain_lora: ClassVar[bool] = True
    says_pooling: ClassVar[bool] = True

    # ---- resolution --------------------------------------------------------------------------------------------------
    def recipe(self, params: Params) -> Mapping[str, Sequence[Scalar]]:
        """Rank 16, or the rank that is nearest to it; the best rate falls as the rank grows.

        AdamW moves each of R's numbers by the rate, so R as a whole by up to `rank` times the rate. Measured for ranks
        1 to 64, on two or three tasks: "A recipe" and "How few numbers suffice" in tests/benchmarks/README.md.
        """
        rank, rates = params.get("rank"), tuple[float, ...]()
        if isinstance(rank, int) and rank <= max(_RANKS):
            best = min(_RATE_TIMES_RANK / rank, _MAX_RATE)
            rates = tuple(float(f"{rate:.2g}") for rate in (best, best / 2))
        return {
            "rank": _RANKS,
            "target_modules": ("all-linear",),
            "basis": (Hyperparameters.basis,),
            "scale": (Hyperparameters.scale,),
            "learning_rate": rates,
            "head_learning_rate": (5.0e-3,),
        }

    def fields(self, params: Params, possible: Possible) -> Mapping[str, Any]:
        return {**self.with_defaults(params), "factor_rank": _factor_rank(possible)}

    def params(self, hyper: Hyperparameters) -> Params:
        return {name: getattr(hyper, name) for name in self.parameters}

    def check(self, params: Params, modules: Modules) -> None:
        """Hold each layer's rank against its smaller side.

        Raises:
            UsageError: it is above one of them; the message names the layer that it fits least.
        """
        check_ranks(int(params["rank"]), modules)

    def slot_bytes(self, params: Params, modules: Modules, num_workers: int) -> int:
        # R with its gradient and two moments; in the pack C, what R is multiplied with, and gradients for each worker.
        own, drawn = self.size(params, modules, {}, {}).r_parameters * (4 + 2 + num_workers), 0
        if params["basis"] == "gaussian":  # A and B are the trial's own
            drawn = sum(int(params["rank"]) * (module.in_features + module.out_features) for module in modules)
        return BYTES_PER_PARAMETER * (own + drawn)

    def factor_sets(self, possible: Possible) -> tuple[tuple[Basis, int], ...]:
        bases = (basis for basis in possible["basis"] or () if basis != "gaussian")
        return tuple((cast("Basis", basis), _factor_rank(possible)) for basis in bases)

    def start_asset(self, folder: Path, manifest: Manifest, *, with_head: bool) -> bytes:
        from safetensors.torch import load, save

        from loraxs_search.methods.stored import expanded

        config: dict[str, Any] = json.loads((folder / FILES[0]).read_bytes())
        stored = expanded(load((folder / FILES[1]).read_bytes()), manifest.hyperparameters.target_modules)
        tensors = {name.removeprefix(ROOT): stored[name] for name in sorted(stored)}
        head = tuple(name for name in tensors if not name.endswith(f".{R}"))
        kept = {name: value for name, value in tensors.items() if with_head or name not in head}
        fingerprints = config.get("factor_fingerprints") or {}
        header = StartHeader(manifest.hyperparameters, fingerprints, head if with_head else tuple[str, ...]())
        return save(kept, {START: to_json(header)})

    def check_start(self, start: Hyperparameters, params: Params, modules: Modules) -> None:
        """Hold a trial against the adapter that it starts from: R is to mean there what it means here.

        Raises:
            UsageError: basis, sigma or modules are others, or the rank is smaller; A and B are not those of the base.
        """
        if start.basis == "gaussian":
            raise UsageError(
                "`start_from` must name an adapter in the base's own factors, but A and B of this one were drawn.",
                hint="name an adapter of another basis",
            )
        for name in ("basis", "sigma"):
            wanted = getattr(start, name)
            if params[name] != wanted:
                raise UsageError(
                    f"`{name}` must be that of the adapter it starts from, {wanted}, but a trial may have"
                    f" {params[name]}.",
                    hint=f"set `{name}: {wanted}` in the space",
                )
        if missing := [name for name in start.target_modules if name not in {module.name for module in modules}]:
            raise UsageError(
                f"A trial must adapt all that the adapter it starts from does, but {missing[0]} may be left out.",
                hint="choose `target_modules` that hold those of the adapter",
            )
        if int(params["rank"]) < start.rank:
            raise UsageError(
                f"`rank` must be at least that of the adapter it starts from, {start.rank}, but a trial may have"
                f" {params['rank']}.",
                hint="raise `rank` in the space, or start from a smaller adapter",
            )

    def stored(self, params: Params, modules: Modules) -> Shapes:
        rank = int(params["rank"])
        return {f"{module.name}.{R}": (rank, rank) for module in modules}

    def size(
        self, params: Params, modules: Modules, head: Shapes, identity: Shapes, body: Shapes = NONE
    ) -> AdapterSize:
        rank, dtype = int(params["rank"]), str(params["stored_dtype"])
        shapes = {R: (len(modules), rank, rank), **head}
        narrow = (name for name, shape in shapes.items() if name == R or (dtype == "int8" and len(shape) > 1))
        dtypes = dict.fromkeys(narrow, _DTYPES[dtype])
        if dtype == "int8":
            shapes |= {f"{name}{SCALE}": shapes[name][:1] for name in dtypes}
        size = super().size(params, modules, head, identity, body)
        return replace(size, stored_bytes=file_bytes(shapes, dtypes=dtypes))

    # ---- work --------------------------------------------------------------------------------------------------------
    def factors(self, hyper: Hyperparameters, sizes: Sizes) -> Iterator[tuple[str, FactorKey]]:
        from loraxs_search.methods.loraxs import ModuleSettings

        if hyper.basis != "gaussian":  # whose factors the seed gives back
            config = self.config(hyper, {})
            for name, size in sizes.items():
                yield name, ModuleSettings.of(config, name, *size).factor_key

    def config(self, hyper: Hyperparameters, attachment: Mapping[str, Any]) -> LoraXSConfig:
        from loraxs_search.methods.loraxs import LoraXSConfig

        return LoraXSConfig(
            r=hyper.rank,
            scale=hyper.scale,
            sigma=hyper.sigma,
            basis=hyper.basis,
            factor_rank=hyper.factor_rank,
            init_std=hyper.init_std,
            init_seed=hyper.seed,
            start_from=hyper.start_from,
            stored_dtype=hyper.stored_dtype,
            **attachment,
        )

    def attach(
        self, model: PreTrainedModel, hyper: Hyperparameters, head: HeadPlan, factors: FactorStore | None
    ) -> PeftModel:
        from loraxs_search.methods.loraxs import current_factor_store, use_factor_store

        with use_factor_store(current_factor_store() if factors is None else factors):
            return super().attach(model, hyper, head, factors)

    def written(self, tensors: Mapping[str, Tensor], config: PeftConfig) -> Mapping[str, Tensor]:
        from loraxs_search.methods.stored import compact

        return compact(tensors, cast("LoraXSConfig", config).stored_dtype)

    def plain_lora(self, model: PeftModel) -> PlainLora:
        """Return the same function as LoRA, exactly, since scale * B R A = (scale * B R) A."""
        from loraxs_search.methods.loraxs import LoraXSLinear

        layers = {n: it for n, it in model.get_base_model().named_modules() if isinstance(it, LoraXSLinear)}
        return self.as_plain_lora(model, {name: layer.to_lora(ADAPTER) for name, layer in layers.items()})

    def packed_adapter(
        self, hyper: Hyperparameters, linears: Linears, factors: FactorStore, device: torch.device
    ) -> PackedAdapter:
        from loraxs_search.methods.loraxs.packed import PackedR

        return PackedR(self.config(hyper, {}), linears, factors, device)

    def packed_updates(self, linears: Linears, factors: FactorStore, num_workers: int) -> Packing:
        from loraxs_search.methods.loraxs.packed import FactorPairs, PackedCores

        pairs = FactorPairs(linears, lambda: factors)  # made once for all packs
        return lambda slots: PackedCores(slots, linears, pairs, num_workers)


def _factor_rank(possible: Possible) -> int:
    """Return the rank at which factors are computed and stored, the same for all trials of a space.

    It may be above a small module's side; the factors of that module then end at its side.
    """
    return factor_bucket(max(int(rank) for rank in possible["rank"] or ()))

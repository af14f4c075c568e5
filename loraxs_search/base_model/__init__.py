"""The frozen model under every adapter: find it, know its layers, load it.

`locate` and `check_packable` need no torch; the other names load it on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from loraxs_search.base_model._files import numbers_by_dtype, weight_bytes, weight_digest
from loraxs_search.base_model._locate import locate
from loraxs_search.base_model._packable import Sharing, check_packable, check_shared
from loraxs_search.base_model._package import with_known_package

if TYPE_CHECKING:
    from loraxs_search.base_model._library import quiet
    from loraxs_search.base_model.attention import use_padded_attention, uses_padded_attention
    from loraxs_search.base_model.head import (
        fold_outputs,
        fresh_head,
        head_as_loaded,
        head_names,
        init_head,
        is_identity,
        keep_head_float32,
        make_identity,
        missing_poolers,
        output_head,
        peft_task_type,
        with_labels,
    )
    from loraxs_search.base_model.layers import body_shapes, head_shapes, linear_modules, matrix, repeated_layers
    from loraxs_search.base_model.load import bare_body, checked_device, load_model, with_setup
    from loraxs_search.base_model.pooling import place_pooling, pooling_of, resolved_pooling, trained_pooling
    from loraxs_search.base_model.reading import (
        Projection,
        close_to,
        dummy_inputs,
        end_with_eos,
        joined,
        last_states,
        max_positions,
        padding_side,
        readable,
        rounding,
        timing_inputs,
    )
    from loraxs_search.base_model.sharing import probe_sharing
    from loraxs_search.base_model.tokenizer import load_tokenizer

__all__ = [
    "Projection",
    "Sharing",
    "bare_body",
    "body_shapes",
    "check_packable",
    "check_shared",
    "checked_device",
    "close_to",
    "dummy_inputs",
    "end_with_eos",
    "fold_outputs",
    "fresh_head",
    "head_as_loaded",
    "head_names",
    "head_shapes",
    "init_head",
    "is_identity",
    "joined",
    "keep_head_float32",
    "last_states",
    "linear_modules",
    "load_model",
    "load_tokenizer",
    "locate",
    "make_identity",
    "matrix",
    "max_positions",
    "missing_poolers",
    "numbers_by_dtype",
    "output_head",
    "padding_side",
    "peft_task_type",
    "place_pooling",
    "pooling_of",
    "probe_sharing",
    "quiet",
    "readable",
    "repeated_layers",
    "resolved_pooling",
    "rounding",
    "timing_inputs",
    "trained_pooling",
    "use_padded_attention",
    "uses_padded_attention",
    "weight_bytes",
    "weight_digest",
    "with_known_package",
    "with_labels",
    "with_setup",
]

_HOMES = {
    name: module
    for module, names in {
        "_library": ["quiet"],
        "attention": ["use_padded_attention", "uses_padded_attention"],
        "head": [
            *("fold_outputs", "fresh_head", "head_as_loaded", "head_names", "init_head", "is_identity"),
            *("keep_head_float32", "make_identity", "missing_poolers", "output_head", "peft_task_type", "with_labels"),
        ],
        "layers": ["body_shapes", "head_shapes", "linear_modules", "matrix", "repeated_layers"],
        "load": ["bare_body", "checked_device", "load_model", "with_setup"],
        "pooling": ["place_pooling", "pooling_of", "resolved_pooling", "trained_pooling"],
        "reading": [
            *("close_to", "dummy_inputs", "end_with_eos", "joined", "last_states", "max_positions"),
            *("Projection", "padding_side", "readable", "rounding", "timing_inputs"),
        ],
        "sharing": ["probe_sharing"],
        "tokenizer": ["load_tokenizer"],
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

"""IA3: which layers take a feed-forward block back, so that what enters them is scaled."""

from __future__ import annotations

import pytest

from loraxs_search.methods import get_method
from loraxs_search.records import LinearModule


@pytest.mark.parametrize(
    ("name", "is_last"),
    [
        ("bert.encoder.layer.0.output.dense", True),
        ("bert.encoder.layer.0.intermediate.dense", False),
        ("model.layers.0.mlp.down_proj", True),
        ("model.layers.0.self_attn.o_proj", False),
        ("model.layers.0.mlp.Wo", True),
        ("model.layers.0.attn.Wo", False),
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output", True),
    ],
)
def test_the_paper_scales_what_enters_the_last_layer_of_a_feed_forward_block(name: str, is_last: bool) -> None:
    shapes = get_method("ia3").stored({"scaled": "paper"}, [LinearModule(name, 32, 8)])
    assert list(shapes.values()) == [(1, 32) if is_last else (8, 1)]

"""What ends the answers that a base writes."""

from __future__ import annotations

from dataclasses import replace

from transformers import GenerationConfig, PreTrainedTokenizerBase

from loraxs_search.records import Serving
from loraxs_search.tasks.kinds import TaskKind


def end_ids(tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None) -> set[int]:
    """Return the tokens that end what a base writes: the tokenizer's, and those that the base generates with."""
    own = None if settings is None else settings.eos_token_id
    ends = own if isinstance(own, list) else [own]
    return {end for end in (tokenizer.eos_token_id, *ends) if end is not None}


def served(kind: TaskKind, tokenizer: PreTrainedTokenizerBase, settings: GenerationConfig | None) -> Serving | None:
    """Return how a kind's adapters are asked on a base, with what ends their answers; None where they write no text.

    Args:
        settings: How the base generates.
    """
    if (serving := kind.serving) is None:
        return None
    ends = sorted(end_ids(tokenizer, settings).union(kind.end_ids(tokenizer)))
    return replace(serving, ends=tuple(filter(None, tokenizer.convert_ids_to_tokens(ends))))

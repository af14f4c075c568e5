"""GGUF to what `save_pretrained` writes: bfloat16 safetensors, configuration, tokenizer with its chat template.

Byte-level vocabularies whose split of text is known here are built from the file's own fields, so that each version of
transformers gives the same tokens; it reads the others. (Its 5.0 takes another end token than the file's, and none
knows by name that SmolLM cuts numbers into digits before anything else, which shows where blanks stand before one.)
"""

from __future__ import annotations

import copy
import errno
import os
import re
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from loraxs_search.base_model.layers import quiet
from loraxs_search.errors import BaseModelError, first_line

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def _read_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a GGUF file, with its chat template if it has one.

    Raises:
        Exception: whatever a damaged file leads to.
    """
    fields = gguf.GGUFReader(source).fields

    def value(name: str, prefix: str = "tokenizer.ggml") -> Any:
        field: Any = fields.get(f"{prefix}.{name}")
        return None if field is None else field.contents()

    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_alone])
    # How text is cut before byte-pair encoding, by GGUF's name for it.
    split = {"smollm": digits, "gpt-2": bytes_alone}.get(value("pre"))
    if split is None or value("model") != "gpt2":
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        return tokenizer
    tokens, merges = value("tokens"), [tuple(merge.split(" ")) for merge in value("merges")]
    raw = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    raw.pre_tokenizer = split
    raw.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, value("token_type"), strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kind == _CONTROL)
            raw.add_special_tokens([added]) if kind == _CONTROL else raw.add_tokens([added])
    numbers = {name: value(f"{key}_token_id") for name, key in _SPECIAL.items()}
    special = {name: tokens[number] for name, number in numbers.items() if number is not None}
    if value("add_bos_token") and "bos_token" in special:
        begin = special["bos_token"]
        raw.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, tokens.index(begin))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **special)
    tokenizer.chat_template = value("chat_template", prefix="tokenizer")
    return tokenizer


def convert(source: Path, folder: Path) -> None:
    """Write the model of a GGUF file into an existing, empty folder, all of it flushed to the device.

    Raises:
        BaseModelError: the file is damaged, holds no causal language model, or one of an architecture that
            transformers cannot read.
        OSError: the folder cannot be written.
    """
    with quiet():
        try:
            tokenizer, model = _read_tokenizer(source), _model(source)
        except MemoryError:
            raise
        except Exception as error:
            # The readers meet a damaged file with whatever its wrong bytes lead to: to the user they are one fault.
            raise BaseModelError(
                f"{source} must be the GGUF file of a causal language model that transformers can read, but:"
                f" {first_line(error)}",
                hint="reinstall the package that holds it, or use another base model",
            ) from error
        try:
            model.save_pretrained(folder, max_shard_size="50GB")
            tokenizer.save_pretrained(folder)
        except SafetensorError as error:  # its own for a full disk
            found = re.search(r"os error (\d+)", str(error))
            number = int(found.group(1)) if found else errno.EIO
            raise OSError(number, os.strerror(number)) from error
    mode = (folder / "config.json").stat().st_mode  # the library writes some only for their owner
    for file in folder.iterdir():
        file.chmod(mode)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def _model(source: Path) -> PreTrainedModel:
    """Return the model of the file in bfloat16, of the plain class that is saved as any other."""
    # Where transformers could keep a file's weights packed, it is asked not to.
    config_class = getattr(transformers, "GgufConfig", None)
    options: dict[str, Any] = {} if config_class is None else {"quantization_config": config_class(dequantize=True)}
    library: Any = AutoModelForCausalLM  # its annotation leaves out the pair that `output_loading_info` returns
    loaded, info = library.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16, output_loading_info=True, **options
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} parameters are not in it, the first being {missing[0]}")
    config = copy.deepcopy(loaded.config)
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict(), assign=True)
    return model

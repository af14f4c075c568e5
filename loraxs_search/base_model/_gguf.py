"""A base model in one GGUF file, as a folder of safetensors: converted once, kept in the home. No torch until then.

GGUF's quantised numbers are multiplied out and rounded to bfloat16. That is plain arithmetic: the same file gives the
same weights, and so the same digest, on every machine.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from loraxs_search.base_model._digest import file_digest
from loraxs_search.base_model._folder import is_model_folder
from loraxs_search.base_model._made_once import made_once
from loraxs_search.home import alone, disk_faults, home, mark_used, write_atomic

log = logging.getLogger(__name__)

SOURCE_NOTE = "source.json"
_VERSION = 1  # of the conversion; another one makes every folder anew


def converted_gguf(source: Path) -> Path:
    """Return the model's folder (bfloat16 safetensors, configuration, tokenizer), converting on first use.

    The folder is named after the digest of `source`, so that another file is converted anew; `source.json` in it
    says from what it was made. Of processes at once, one converts and the others wait.

    Raises:
        BaseModelError: the file is damaged, or its architecture is not known.
        HomeError: the home cannot be written.
    """
    digest = file_digest(source)
    final = home() / "base_models" / f"{digest[:16]}-bf16-{_VERSION}"
    if is_model_folder(final):
        mark_used(final)
        return final
    with disk_faults(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with alone(final):
            return made_once(final, lambda folder: _convert(source, digest, folder))


def _convert(source: Path, digest: str, folder: Path) -> None:
    from loraxs_search.base_model.gguf_conversion import convert

    log.warning("Converting %s to safetensors; this is done once and takes up to a minute.", source.name)
    convert(source, folder)
    note = {"file": source.name, "sha256": digest, "conversion": _VERSION}
    write_atomic(folder / SOURCE_NOTE, json.dumps(note, indent=2))

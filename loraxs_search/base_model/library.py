"""Calls into transformers: without its noise, and with its errors turned into ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from safetensors import SafetensorError
from transformers.utils import logging

from loraxs_search.errors import BaseModelError, first_line
from loraxs_search.records.base import BaseModel


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars inside the block, then restore both.

    It reports each load at length; what matters of that is checked and raised here.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def library_call(base: BaseModel) -> Iterator[None]:
    """Run a call that reads the base model's folder: quiet, and any fault is a `BaseModelError`."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = first_line(error)
        raise BaseModelError(
            f"{base.path} must hold a text model that transformers can load, but: {reason}",
            hint=f"get the files of {base.id} again, or use another base model",
        ) from error

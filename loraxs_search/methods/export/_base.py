"""The contract of an export format: what `pull --format` makes of an adapter, for software that knows no LoRA-XS.

**Declaration** (`name` to `fits`): plain values, read without torch by any process and thread.

**Writing** (`write`): in the process of whoever pulls, after the adapter was verified, on a model nobody else uses.
The folder is new and empty, and is put in its place whole when `write` returns; where it raises, or is killed, nothing
is left of it, and it is called again with another folder at the next try. Of several processes that want the same
export, one writes it.
The same adapter gives the same bytes: nothing in a file says when, where or from which call it was written.

What is written stays beside the adapter in the cache for as long as its files are unchanged and `layout` is the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, cast

from loraxs_search.manifest import Manifest
from loraxs_search.methods._base import Method
from loraxs_search.records.task import Serving

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MergedDtype = Literal["float32"]
OnnxPrecision = Literal["int8"]


@dataclass(frozen=True)
class ExportOptions:
    """What people ask of an export beside its format; None leaves it to the format.

    Args:
        rank: Rank of every layer, filled up with zeros.
        dtype: Type that the adapter is loaded in.
        precision: How a graph's matrices are stored, where that is not float32.
    """

    rank: int | None = None
    dtype: MergedDtype | None = None
    precision: OnnxPrecision | None = None

    @property
    def given(self) -> dict[str, int | str]:
        """Options that are not None, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter on its base, which nobody else uses, and what it needs to be asked.

    Args:
        method: That trained it.
    """

    model: PeftModel | PreTrainedModel
    manifest: Manifest
    method: Method

    @property
    def peft(self) -> PeftModel:
        """The model, as what PEFT makes of a base."""
        from peft import PeftModel

        assert isinstance(self.model, PeftModel)
        return self.model

    @property
    def base(self) -> PreTrainedModel:
        """The model below the adapter."""
        return cast("PreTrainedModel", self.peft.get_base_model())

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """That of the adapter's base."""
        from loraxs_search.base_model.locate import locate
        from loraxs_search.base_model.tokenizer import load_tokenizer

        return load_tokenizer(locate(self.manifest.base_model))

    @cached_property
    def serving(self) -> Serving | None:
        """How it is asked as in training; None if it writes no text."""
        from loraxs_search.tasks.kinds import kind_of
        from loraxs_search.tasks.prepared import served

        kind = kind_of(self.manifest.task)
        if kind.serving is None:
            return None  # nor has its model settings for writing
        return served(kind, self.tokenizer, self.base.generation_config)


class ExportFormat(ABC):
    """One format. It has no state: an entry is made for each export."""

    name: ClassVar[str]
    """What `--format` takes, in lower case."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Fields of `ExportOptions` that it takes; others are refused before anything is pulled."""
    layout: ClassVar[int] = 1
    """Raised when it writes other files: exports that are kept are written again."""

    @classmethod
    @abstractmethod
    def fits(cls, method: Method) -> bool:
        """Whether adapters of a method can become this; `write` may still refuse one of them."""

    @abstractmethod
    def write(self, adapter: LoadedAdapter, folder: Path, options: ExportOptions) -> None:
        """Write the files, among them a README.md with the code that loads them.

        Args:
            folder: New and empty.
            options: Only those of `options` may be given.
        Raises:
            UsageError: this adapter cannot become it; the message says why, the hint what to use instead.
            HomeError: the folder cannot be written.
        """

"""The bank: adapters by name, and batches whose rows name them."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraxs_search.bank.bank_model import BankModel, BankRows, StoredAdapter
from loraxs_search.base_model.load import checked_device
from loraxs_search.base_model.locate import locate
from loraxs_search.base_model.tokenizer import load_tokenizer, with_setup
from loraxs_search.engine.passes import Engine
from loraxs_search.errors import IntegrityError, UsageError, one_of
from loraxs_search.methods import METHODS, method_of
from loraxs_search.methods._base import FILES
from loraxs_search.methods.loading import check_ends, compare_reference_logits, tolerance, verified_manifest
from loraxs_search.methods.loraxs import LoraXSConfig
from loraxs_search.methods.stored import expanded
from loraxs_search.mlflow_uri import resolve_uri
from loraxs_search.operating_points import with_points
from loraxs_search.records.adapter import Prediction
from loraxs_search.records.task import BaseModel, BaseModelRef, Task, TaskModel
from loraxs_search.registry.pull import adapter_folder
from loraxs_search.studies.folder import kept_adapter
from loraxs_search.tasks.encoded import RowSource
from loraxs_search.tasks.kinds import RequestGenerator, classifier, kind_of
from loraxs_search.tasks.rows import SourceLocation, is_frame, question_rows

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)
_MANY = 10_000  # with more names, the nearest is not searched


class AdapterBank:
    """Holds any number of adapters of one base, and computes batches whose rows name them.

    All of them have a head, or none has: a bank is of classifiers or of language models.

    A row's logits depend only on its adapter, not on the other rows (float32, within 1e-5). An adapter takes
    4 bytes for each number of its R and head, and a name.

    Any method may be called from any thread. A batch takes what it needs of its adapters before it is computed, so
    adapters may come and go meanwhile; batches of several threads are computed side by side.

    Args:
        base: The base model of all adapters; held in its checkpoint's own precision.
        max_bytes: Limit on the adapters' numbers; the least recently used are evicted. None means no limit.
        task_model: How the base is loaded; by default as a classifier. If it has a head, rows without an adapter go
            through it: the checkpoint's own, or a random one.
    Raises:
        UsageError: there is no such device.
    """

    def __init__(
        self,
        base: BaseModelRef | BaseModel,
        *,
        max_bytes: int | None = None,
        device: str = "cpu",
        task_model: TaskModel | None = None,
    ) -> None:
        self._device = checked_device(device)
        self.base = with_setup(base if isinstance(base, BaseModel) else locate(base))
        self.model = BankModel(self.base, task_model or classifier(2), self._device)
        self.has_head = self.model.has_head  # whether adapters have one; without, they choose or write
        self._max_bytes = max_bytes
        self._adapters: OrderedDict[str, StoredAdapter] = OrderedDict()  # least recently used first
        self.num_bytes = 0  # of the adapters' numbers, R and head
        self._lock = threading.Lock()  # of the adapters: held briefly
        self._tokenizing = threading.Lock()  # truncation is a setting of the tokenizer, in which tasks differ

    @classmethod
    def of(
        cls, *names: str, max_bytes: int | None = None, device: str = "cpu", tracking_uri: str | None = None
    ) -> AdapterBank:
        """Return a bank of these adapters, as `load` takes them, on the base that the first one was trained on."""
        if not names:
            raise UsageError("A bank must be made of one adapter at least, or of a base.")
        manifest, base = verified_manifest(_folder_of(names[0], tracking_uri))
        bank = cls(base, max_bytes=max_bytes, device=device, task_model=kind_of(manifest.task).model)
        for name in names:
            bank.load(name, tracking_uri=tracking_uri)
        return bank

    # ---- adapters come and go ----------------------------------------------------------------------------------------
    def load(self, name: str, source: str | Path | None = None, *, tracking_uri: str | None = None) -> None:
        """Load an adapter under a name, in place of the one that has it.

        Files, base, factors and reference logits are compared as `load_adapter` does. Whatever is refused leaves the
        bank as it was.

        Args:
            source: What `pull` takes, `STUDY/TRIAL`, or a folder, as `load_adapter` does; None means `name` itself.
        Raises:
            RegistryError, IntegrityError, BaseModelError: as `pull` and `load_adapter`; what the
                adapter stores must be only R and head.
            UsageError: it does not fit into `max_bytes`, or is of a method that a bank does not serve.
        """
        folder = _folder_of(source or name, tracking_uri)
        manifest, _ = verified_manifest(folder, self.base)
        check_ends(manifest, self.base, self.model.model)
        method = method_of(manifest.hyperparameters)
        if not method.serves_in_bank:
            known = one_of([other for other, entry in METHODS.importable().items() if entry.serves_in_bank])
            raise UsageError(
                f"An adapter of a bank must be of method {known}, but {name} is of method {method.name}.",
                hint="`loraxs-search pull --format lora` makes it an adapter that PEFT and vLLM serve with many others"
                if method.has_plain_lora
                else "load it by itself, with `loraxs_search.load_adapter`",
            )
        if missing := [file for file in FILES if file not in manifest.files]:
            raise IntegrityError(f"A manifest must vouch for {missing[0]}, but that of {folder} does not.")
        config = LoraXSConfig.from_pretrained(str(folder))
        tensors = expanded(load_file(folder / FILES[1]), manifest.hyperparameters.target_modules)
        adapter = self.model.stored(config, manifest.task, tensors)
        token_ids = torch.tensor(manifest.probe.input_ids, device=self._device)
        rows = BankRows(self.model, [adapter] * len(token_ids))
        inputs = {"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}
        logits = torch.stack(rows.logits(inputs)).cpu()
        given = logits if self.has_head else logits[:, None]
        compare_reference_logits(given, manifest.probe, tolerance(self.model.model))
        self._put(name, replace(adapter, points=manifest.operating_points))

    def add(self, name: str, config: LoraXSConfig, task: Task, tensors: Mapping[str, Tensor]) -> None:
        """Add an adapter that is in memory, in place of the one that has its name.

        Args:
            config: Its `factor_fingerprints` and `body_fingerprint` are compared where it has them.
            task: Says how many outputs the head has, and how texts become tokens.
            tensors: What `adapter_model.safetensors` holds, by the same names.
        Raises:
            BaseModelError: the config was made for other factors, or another body.
            IntegrityError: a tensor has another name or shape than it should.
            UsageError: it does not fit into `max_bytes`.
        """
        self._put(name, self.model.stored(config, task, expanded(tensors, config.factor_fingerprints)))

    def evict(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            UsageError: there is none of this name.
        """
        with self._lock:
            self.num_bytes -= self._of_name(name).vector.nbytes
            del self._adapters[name]

    @property
    def names(self) -> list[str]:
        """The adapters' names, least recently used first."""
        with self._lock:
            return list(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    # ---- batches -----------------------------------------------------------------------------------------------------
    def logits(self, names: Sequence[str | None], inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return each row's logits, shape (labels of its adapter,), float32, on the bank's device.

        Without heads they are those of the next token, (vocabulary,).

        Args:
            names: The adapter of each row; None for the bare base.
            inputs: What the model takes, each (rows, tokens): `input_ids`, `attention_mask`, ...
        Raises:
            UsageError: a name is not in the bank, or there is not one for each row.
        """
        names = list(names)  # a Series of pandas is indexed by its labels
        if not names:
            raise UsageError("A batch must have at least one row, but got none.")
        wrong = {name: len(value) for name, value in inputs.items() if len(value) != len(names)}
        if wrong:
            raise UsageError(f"There must be a name for each row, but got {len(names)} names for rows {wrong}.")
        found = self.take(names)
        return BankRows(self.model, [found[name] for name in names]).logits(inputs)

    def predict(
        self, names: str | Sequence[str], texts: str | Sequence[str | tuple[str, ...]] | DataFrame
    ) -> list[Prediction]:
        """Apply to each text the adapter that is named for it.

        Args:
            names: The adapter of each text, or one name for all of them.
            texts: Several texts, or one, whose answer is a list of one. A task that reads several columns, such as
                pairs or a prompt with two columns, takes a tuple of as many. Or a DataFrame, of which each row's task
                reads its columns.
        Raises:
            UsageError: a name is not in the bank, there is not one for each text, or a DataFrame lacks a column.
            TaskDataError: a task takes another number of texts, or a text has nothing to read.
        """
        rows: Any = texts if is_frame(texts) else question_rows(texts)
        names = [names] * len(rows) if isinstance(names, str) else list(names)  # a Series is indexed by its labels
        if len(names) != len(rows):
            raise UsageError(f"There must be a name for each text, but got {len(names)} for {len(rows)}.")
        if None in names:
            raise UsageError(
                f"A text must name an adapter, whose task says what it is asked, but None is none of {len(self)}.",
                hint="the bare base has no task: ask `logits` for its rows",
            )
        found = self.take(names)  # once: an adapter that is replaced meanwhile has other labels for other numbers
        kinds = {str(name): adapter.kind for name, adapter in found.items() if adapter}
        rows_of: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            rows_of.setdefault(name, []).append(row)
        source, asking = RowSource(self.tokenizer), dict[str, RequestGenerator[list[Prediction]]]()
        tables = dict[tuple[str, ...], list[tuple[Any, ...]]]()  # rows of a DataFrame, by the columns that are read
        cut = Counter[tuple[int, str]]()  # rows, by their `max_length` and what they lose
        with self._tokenizing:
            for name, numbers in rows_of.items():
                kind = kinds[name]
                columns = tuple(kind.question_columns) if is_frame(rows) else ()
                if columns and columns not in tables:
                    tables[columns] = question_rows(rows, columns)
                own = [tables.get(columns, rows)[row] for row in numbers]
                encoded = kind.encode_questions(own, self.tokenizer, SourceLocation("the request").take(numbers))
                cut[kind.task.max_length, kind.cut_part] += encoded.num_cut
                asking[name] = kind.predict(source, encoded, [kind.shown(row) for row in own])
        if cut := +cut:
            limits, parts = (" or ".join(dict.fromkeys(map(str, column))) for column in zip(*sorted(cut), strict=True))
            log.warning(
                "%d of %d rows are longer than max_length=%s: their %s are lost", cut.total(), len(names), limits, parts
            )
        bank = BankRows(self.model, list(found.values()))
        requesters = bank.requesters(source, {name: number for number, name in enumerate(kinds)})
        answers = [Prediction("", None, None)] * len(names)
        for name, result in Engine(bank).run(requesters, asking).items():
            if isinstance(result, Exception):
                raise result
            points = () if (adapter := found[name]) is None else adapter.points
            for row, answer in zip(rows_of[name], with_points(result, points), strict=True):
                answers[row] = answer
        return answers

    # ---- for servers -------------------------------------------------------------------------------------------------
    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's. Truncation is a setting of the tokenizer, so one thread at a time may use it."""
        return load_tokenizer(self.base)

    def take(self, names: Iterable[str | None]) -> dict[str | None, StoredAdapter | None]:
        """Return these adapters, None for the bare base; each counts as used.

        Raises:
            UsageError: there is none of a name.
        """
        with self._lock:
            found = {name: None if name is None else self._of_name(name) for name in names}
            for name in found:
                if name is not None:
                    self._adapters.move_to_end(name)
        return found

    # ---- inside ------------------------------------------------------------------------------------------------------
    def _of_name(self, name: str) -> StoredAdapter:
        if name in self._adapters:
            return self._adapters[name]
        near = get_close_matches(str(name), self._adapters) if len(self) <= _MANY else ()
        nearest = f", the nearest being {', '.join(near)}" if near else ""
        raise UsageError(
            f"A row must name an adapter that is in the bank, but {name!r} is none of {len(self)}{nearest}.",
            hint="load it first; `max_bytes` may have evicted it",
        )

    def _put(self, name: str, adapter: StoredAdapter) -> None:
        """Store an adapter, and drop those that were used longest ago until it fits."""
        size, limit = adapter.vector.nbytes, self._max_bytes
        if limit is not None and size > limit:
            raise UsageError(
                f"`max_bytes` must hold an adapter, but {name} takes {size:,} bytes of {limit:,}.",
                hint="raise max_bytes",
            )
        with self._lock:
            if name in self._adapters:
                self.num_bytes -= self._adapters.pop(name).vector.nbytes
            while limit is not None and self.num_bytes + size > limit:
                self.num_bytes -= self._adapters.popitem(last=False)[1].vector.nbytes
            self._adapters[name] = adapter
            self.num_bytes += size


def _folder_of(source: str | Path, tracking_uri: str | None) -> Path:
    kept = kept_adapter(source) if isinstance(source, str) else None
    return kept or adapter_folder(source, uri=resolve_uri(tracking_uri))

"""Trials for tests of training, of encoders and decoders: their params, and how each ends when it runs by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    FalconH1Config,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    Lfm2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from loraxs_search.bank.bank import AdapterBank
from loraxs_search.bank.bank_model import BankRows
from loraxs_search.base_model.layers import linear_modules
from loraxs_search.base_model.load import load_model
from loraxs_search.base_model.sharing import probe_sharing
from loraxs_search.engine.layers import AdaptedBase
from loraxs_search.engine.passes import Engine, PassExecutor, Requester
from loraxs_search.factors.store import FactorStore
from loraxs_search.methods.loraxs import use_factor_store
from loraxs_search.packing.host import LoadedFactors
from loraxs_search.packing.pack import Pack, PackedModel, PeftBase, Slot
from loraxs_search.records.task import BaseModel, DataSource, LinearModule, Task, TaskModel
from loraxs_search.records.trial import Hyperparameters, TrialSpec
from loraxs_search.tasks.encoded import EncodedRows, Ragged, RowSource
from loraxs_search.tasks.kinds import Generated, GenerateRequest, begin_ids, token_ids
from loraxs_search.tasks.kinds.text_generation import TextGeneration
from loraxs_search.tasks.prepared import PreparedTask
from loraxs_search.trial.attach import attach, detach
from loraxs_search.trial.snapshot import Snapshot
from support.bases import SMALL, language_model, word_tokenizer


def make_spec(trial_id: str, modules: Iterable[str], **changes: Any) -> TrialSpec:
    """Return a trial that adapts these modules; its seed is its number."""
    values: dict[str, Any] = {
        "rank": 4,
        "target_modules": tuple(modules),
        "learning_rate": 2e-3,
        "head_learning_rate": 1e-3,
        "init_std": 1e-3,
        "batch_size": 8,
        "max_steps": 50,
        "seed": int(trial_id),
        **changes,
    }
    return TrialSpec(trial_id, {}, Hyperparameters(**values))


def unpacked(model: PreTrainedModel, factors: FactorStore) -> Pack:
    """Return the pack of one trial, whose forward is its own PEFT model: what packed trials are held against."""
    return Pack(PeftBase(model, factors, [name for name, _ in model.named_modules()]), max_tokens=100_000)


def run_alone(
    spec: TrialSpec,
    data: PreparedTask,
    model: PreTrainedModel,
    factors: FactorStore,
    until: int,
    snapshot: Snapshot | None = None,
) -> Snapshot:
    """Run a trial by itself as a PEFT model, and return its state after a report.

    Args:
        snapshot: The state that it goes on from.
    """
    pack = unpacked(model, factors)
    try:
        slot = pack.join(spec, data, snapshot)
        while slot.step < until:
            for error in pack.step([slot]).values():
                raise error
        metrics = pack.evaluate([slot], "validation")[slot.name]
        assert isinstance(metrics, dict), metrics
        slot.report(metrics)
        return slot.snapshot()
    finally:
        pack.base.clear()


def train(pack: Pack, slots: Sequence[Slot], num_steps: int) -> None:
    """Train slots by some steps, which none may fail."""
    for _ in range(num_steps):
        assert pack.step(slots) == {}


def distance(actual: Snapshot, expected: Snapshot) -> float:
    """Return the largest |a - b| / |b| over every R, A and B and their moments; a head's tensors count a hundredth.

    A bias may pass through zero, and Adam makes a full step of a gradient that is nothing but rounding: the lone trial
    itself differs there by 2e-4 when its rows come in another order, and its R by 1e-6. A head is held against one step
    at least, its mean gradient against the gradient's size.
    """
    ours, theirs = actual.parameters | actual.moments, expected.parameters | expected.moments
    assert ours.keys() == theirs.keys()
    found = []
    for name, value in theirs.items():
        error, size = float((ours[name] - value).norm()), float(value.norm())
        is_head = "loraxs_R" not in name and ".lora_" not in name
        if name.startswith("exp_avg/") and is_head:
            size = max(size, float(expected.moments[f"exp_avg_sq/{name.removeprefix('exp_avg/')}"].sqrt().norm()))
        elif is_head and not name.startswith("exp_avg_sq/"):
            size = max(size, 1e-3)  # the lowest of the learning rates in use
        found.append((1e-2 if is_head else 1.0) * error / size)
    return max(found)


def same_bits(a: Snapshot, b: Snapshot) -> bool:
    pairs = [(a.parameters, b.parameters), (a.moments, b.moments)]
    return all(x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in y) for x, y in pairs)


class TrialBase:
    """One base with its modules and factors, on which trials run alone or packed."""

    base: BaseModel
    distance = staticmethod(distance)

    def load(self, model: TaskModel, dtype: torch.dtype | None = None) -> None:
        """Load the base, in the checkpoint's own precision and in another one."""
        self.model = load_model(self.base, model, dtype=dtype)
        exact = load_model(self.base, model)
        self.modules: tuple[LinearModule, ...] = linear_modules(self.base, model)
        self.names = [module.name for module in self.modules]
        self.factors: FactorStore = LoadedFactors(self.model, exact, self.names)

    def spec(self, trial_id: str, **changes: Any) -> TrialSpec:
        return make_spec(trial_id, self.names, **changes)

    def pack(self, max_tokens: int = 200, num_workers: int = 1, cache_bytes: int | None = None) -> Pack:
        base = PackedModel(self.model, self.factors, self.modules, num_workers=num_workers, cache_bytes=cache_bytes)
        return Pack(base, max_tokens=max_tokens, executor=PassExecutor(num_workers))

    @contextmanager
    def attached(self, spec: TrialSpec) -> Iterator[Any]:
        """Put a trial's adapter, at its start, on the base as a PEFT model."""
        with use_factor_store(self.factors):
            model = attach(self.model, spec)
        try:
            yield model
        finally:
            detach(model, spec)

    def check_law(
        self,
        trials: Sequence[tuple[TrialSpec, PreparedTask]],
        num_steps: int = 8,
        tolerance: float = 1e-5,
        num_workers: int = 2,
    ) -> None:
        """Assert that packed trials are what each is alone, and resumed ones uninterrupted ones, bit for bit.

        Alone, every fifth one is resumed too. The base is given back with the modules that it had.
        """
        modules, half = dict(self.model.named_modules()), num_steps // 2
        pack = self.pack(num_workers=num_workers)
        slots = [pack.join(spec, data) for spec, data in trials]
        train(pack, slots, half)
        halves = [Snapshot.from_bytes(slot.snapshot().to_bytes()) for slot in slots]
        train(pack, slots, num_steps - half)
        whole = [slot.snapshot() for slot in slots]
        self.check_as_alone(pack, slots, tolerance)
        assert dict(self.model.named_modules()) == modules
        slots = [pack.join(spec, data, state) for (spec, data), state in zip(trials, halves, strict=True)]
        train(pack, slots, num_steps - half)
        assert all(same_bits(slot.snapshot(), state) for slot, state in zip(slots, whole, strict=True))
        pack.base.clear()
        for spec, data in trials[::5]:
            early = run_alone(spec, data, self.model, self.factors, half)
            states = [run_alone(spec, data, self.model, self.factors, num_steps, state) for state in (None, early)]
            assert same_bits(*states)

    def check_as_alone(self, pack: Pack, slots: Sequence[Slot], tolerance: float = 1e-5) -> None:
        """Assert that slots stand, and report, as their trials do alone, as PEFT models; empties the pack."""
        metrics = pack.evaluate(slots, "validation")
        packed = [slot.snapshot() for slot in slots]
        reports = [slot.report(metrics[slot.name]) for slot in slots]  # type: ignore[arg-type]
        pack.base.clear()
        for slot, snapshot, report in zip(slots, packed, reports, strict=True):
            lone = run_alone(slot.spec, slot.data, self.model, self.factors, snapshot.step)
            expected, close = lone.reports[-1], max(tolerance, 1e-5)
            assert (found := distance(snapshot, lone)) < tolerance, (found, slot.spec.trial_id)
            assert (report.step, report.num_tokens, report.size) == (snapshot.step, expected.num_tokens, expected.size)
            assert report.train_loss == pytest.approx(expected.train_loss, rel=close)
            assert report.metrics == pytest.approx(expected.metrics, rel=close)


def write(
    model: torch.nn.Module, request: GenerateRequest, tokenizer: PreTrainedTokenizerBase, *, max_rows: int | None = None
) -> Generated:
    """Continue the prompts of a request with the adapter that is on a model.

    Args:
        max_rows: That are written together; what suits the device unless given.
    """
    engine = Engine(AdaptedBase(model))
    engine.max_rows = max_rows or engine.max_rows
    written: Generated = engine.compute({"": Requester(0, RowSource(tokenizer))}, {"": request})[""]
    return written


def written_by(
    bank: AdapterBank, names: Sequence[str | None], prompts: Sequence[str], limit: int | None = None, **wishes: Any
) -> list[str]:
    """Continue each prompt with the adapter of a bank that is named for it, None for the bare base, in one batch.

    Args:
        limit: Tokens of each; by default what its task says.
        wishes: Of `GenerateRequest`.
    """
    found, requests = bank.take(names), dict[str, GenerateRequest]()
    for row, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
        kind = None if (adapter := found[name]) is None else adapter.kind
        stop, most = (kind.serving.stop, kind.serving.max_new_tokens) if kind and kind.serving else ((), None)
        ids = [*begin_ids(bank.tokenizer), *token_ids([prompt], bank.tokenizer)[0]]
        ends = kind.end_ids(bank.tokenizer) if kind else ()
        source = EncodedRows(Ragged.of([ids], np.int32))
        own = {"stop": stop, "ends": ends, **wishes}
        requests[str(row)] = GenerateRequest(source, np.array([0]), limit or most or 0, **own)
    rows, owners = BankRows(bank.model, list(found.values())), {name: number for number, name in enumerate(found)}
    asking = {str(row): owners[name] for row, name in enumerate(names)}
    written = Engine(rows).compute(rows.requesters(RowSource(bank.tokenizer), asking), requests)
    return [written[str(row)].texts[0] for row in range(len(names))]


VOCABULARY = 64
WINDOW = 6  # shorter than most rows
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL: dict[str, Any] = {**SMALL, **_IDS, "vocab_size": VOCABULARY, "num_key_value_heads": 2}
_SMALL |= {"max_position_embeddings": 64, "tie_word_embeddings": True}
DECODERS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SMALL),
    "qwen2": lambda: Qwen2Config(**_SMALL | {"tie_word_embeddings": False}),
    "qwen3": lambda: Qwen3Config(**_SMALL, head_dim=16),
    "mistral": lambda: MistralConfig(**_SMALL, sliding_window=WINDOW),
    "gemma": lambda: GemmaConfig(**_SMALL | {"num_key_value_heads": 1}, head_dim=16),
    "gemma2": lambda: Gemma2Config(**_SMALL, head_dim=16, sliding_window=WINDOW),  # caps scores and logits
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0, eos_token_id=2
    ),
    # recurrent throughout; convolutions beside attention; both in one layer
    "mamba": lambda: MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, pad_token_id=0, eos_token_id=2
    ),
    "lfm2": lambda: Lfm2Config(**_SMALL, layer_types=["conv", "full_attention"]),
    "falcon_h1": lambda: FalconH1Config(
        **_SMALL, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=16, mamba_d_ssm=64
    ),
}


def tokenizer() -> PreTrainedTokenizerBase:
    special = ["[PAD]", "[BOS]", "[EOS]", "[UNK]"]
    words = [f"w{i}" for i in range(VOCABULARY - len(special))]
    return word_tokenizer([*special, *words], 64, bos_token="[BOS]", eos_token="[EOS]")


def made_up_rows(num_rows: int, seed: int, longest: int = 24) -> EncodedRows:
    """Return rows of up to `longest` tokens: a prompt of one token at least, and an answer that follows from it."""
    random = np.random.default_rng(seed)
    ids, positions, targets = [], [], []
    for _ in range(num_rows):
        prompt = random.integers(4, VOCABULARY, random.integers(1, longest - 6))
        answer = (prompt[-1] + np.arange(random.integers(1, 7)) * (seed + 3)) % (VOCABULARY - 4) + 4
        ids.append(np.append(prompt, answer[:-1]))
        positions.append(np.arange(len(prompt) - 1, len(ids[-1])))
        targets.append(answer)
    return EncodedRows(
        Ragged.of(ids, np.int32), positions=Ragged.of(positions, np.int32), targets=Ragged.of(targets, np.int64)
    )


def continuations(name: str, seed: int, longest: int = 24) -> PreparedTask:
    """Return a task of made-up rows."""
    scored = {"text": "", "label": "", "metric": "loss", "direction": "minimize", "metrics": ("loss", "token_accuracy")}
    settings = {"prompt": "{prompt}", "answer": "{answer}", "generation": {"max_new_tokens": 6, "stop": []}}
    task = Task(name, "text-generation", DataSource(hub="toy"), **scored, max_length=longest, settings=settings)
    sizes = {"train": 90, "validation": 33, "test": 20}
    rows = {split: made_up_rows(size, seed + i, longest) for i, (split, size) in enumerate(sizes.items())}
    labels = {split: np.zeros(size, np.int64) for split, size in sizes.items()}
    return PreparedTask(TextGeneration(task), tokenizer(), name, name, rows, labels)  # type: ignore[arg-type]


def save_decoder(folder: Path, family: str) -> BaseModel:
    """Save a decoder of random weights, large enough that nothing of it does next to nothing."""
    language_model(DECODERS[family]()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return BaseModel(id=family, path=str(folder), weight_digest="0" * 64)


class DecoderWorld(TrialBase):
    """One decoder with several tasks."""

    def __init__(self, folder: Path, family: str, dtype: torch.dtype | None = None) -> None:
        tasks = [continuations("short", 1, 12), continuations("long", 10, 30)]
        self._load(save_decoder(folder / "base", family), tasks, dtype)

    @classmethod
    def of(cls, base: BaseModel, tasks: Sequence[PreparedTask]) -> DecoderWorld:
        """Return one of a base that is there."""
        world = cls.__new__(cls)
        world._load(base, tasks, None)
        return world

    def _load(self, base: BaseModel, tasks: Sequence[PreparedTask], dtype: torch.dtype | None) -> None:
        self.base, self.tasks = base, list(tasks)
        self.load(self.tasks[0].kind.model, dtype)
        unpackable = probe_sharing(self.model, self.names).unpackable  # Mamba turns the input of its `dt_proj`
        self.names = [name for name in self.names if name not in unpackable]

    def mixed_trials(self, **changes: Any) -> list[tuple[TrialSpec, PreparedTask]]:
        """Trials of mixed ranks, sides, modules, batches and tasks."""
        short, long = self.tasks
        top = tuple(name for name in self.names if ".1." in name)
        mixed: list[tuple[dict[str, Any], PreparedTask]] = [
            ({}, long),
            ({"rank": 8, "scale": 2.0, "learning_rate": 5e-3, "batch_size": 5, "max_grad_norm": 0.0}, short),
            ({"rank": 2, "sigma": "sqrt", "lr_schedule": "cosine", "target_modules": top}, long),
            ({"rank": 6, "basis": "bottom", "batch_size": 16, "target_modules": tuple(self.names[1::2])}, short),
            ({"rank": 3, "target_modules": tuple(self.names[::3])}, short),
        ]
        return [(self.spec(str(i), **(own | changes)), data) for i, (own, data) in enumerate(mixed, 1)]

    def lone(self, spec: TrialSpec, data: PreparedTask, until: int) -> Snapshot:
        """Run a trial by itself, the reference, and return its state after a report."""
        return run_alone(spec, data, self.model, self.factors, until)

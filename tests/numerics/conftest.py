"""A small base, a task on made-up rows, and trials as unlike as they may be: what packing is tested on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bases import word_tokenizer
from support.toys import manifest_of, seal
from support.trials import TrialBase, run_alone
from tokenizers import processors
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    ConvBertConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    RobertaConfig,
)

from loraxs_search.base_model.tokenizer import load_tokenizer
from loraxs_search.manifest import Manifest
from loraxs_search.methods import get_method
from loraxs_search.packing.host import LoadedFactors, TrialHost
from loraxs_search.packing.pack import Pack, Slot
from loraxs_search.records.codec import Pooling
from loraxs_search.records.task import BaseModel, BaseModelRef, DataSource, Task, TaskModel
from loraxs_search.records.trial import PeftSettings, TrialSpec
from loraxs_search.tasks.kinds import classifier
from loraxs_search.tasks.prepared import PreparedTask, prepare
from loraxs_search.trial.snapshot import Snapshot

CLASSIFIER, LANGUAGE_MODEL = classifier(2), TaskModel("AutoModelForCausalLM")
WORDS = [f"w{i}" for i in range(60)]
VOCAB = len(WORDS) + 4
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**SMALL, intermediate_size=48),
    "roberta": lambda: RobertaConfig(**SMALL, intermediate_size=48, max_position_embeddings=40),
    "distilbert": lambda: DistilBertConfig(
        vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=48, pad_token_id=0
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=40, pad_token_id=0, eos_token_id=1, bos_token_id=1
    ),
    "deberta": lambda: DebertaV2Config(
        **SMALL, intermediate_size=48, relative_attention=True, pos_att_type=["c2p", "p2c"], share_att_key=True
    ),
    "llama": lambda: LlamaConfig(**SMALL, intermediate_size=48, num_key_value_heads=2),
    "convbert": lambda: ConvBertConfig(**SMALL, intermediate_size=48, embedding_size=32),
    "modernbert": lambda: ModernBertConfig(
        **SMALL, intermediate_size=48, eos_token_id=1, bos_token_id=2, cls_token_id=2, sep_token_id=3
    ),
}


def tokenizer() -> PreTrainedTokenizerBase:
    made = word_tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def write_rows(path: Path, num_rows: int, num_labels: int) -> str:
    """Rows of 3 to 22 tokens; the label can be read off the words."""
    lines = []
    for i in range(num_rows):
        label = i % num_labels
        words = [WORDS[(7 * i + 11 * j + label * j) % len(WORDS)] for j in range(1 + (i * 5) % 20)]
        lines.append(json.dumps({"text": " ".join([WORDS[label], *words]), "label": label}))
    path.write_text("\n".join(lines))
    return str(path)


def make_data(folder: Path, num_labels: int = 2, padding_side: str = "right") -> PreparedTask:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"train": 90, "validation": 33, "test": 20}
    files = {name: write_rows(folder / f"{name}.jsonl", size, num_labels) for name, size in sizes.items()}
    about = ("sequence-classification", DataSource(data_files=files), "text", "label", "accuracy", "maximize")
    labels = tuple(f"label{i}" for i in range(num_labels))
    task = Task(f"made-up-{num_labels}", *about, ("accuracy",), labels=labels, max_length=24)
    tokens = tokenizer()
    tokens.padding_side = padding_side
    return prepare(task, tokens)


def save_base(folder: Path, family: str = "bert", layers: int = 2) -> BaseModel:
    """A model of random weights, its biases and norms random too, so that nothing is zero by chance."""
    torch.manual_seed(0)
    config = FAMILIES[family]()
    if layers != 2:
        config.num_hidden_layers = layers
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return BaseModel(id=family, path=str(folder), weight_digest="0" * 64)


def padded(num_rows: int) -> dict[str, Tensor]:
    """Rows of 4 to 9 tokens, padded on the right, as a model takes them."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(4, VOCAB, (num_rows, 9), generator=draw)
    mask = torch.arange(9) < torch.randint(4, 10, (num_rows, 1), generator=draw)
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def save_adapter(folder: Path, host: TrialHost, spec: TrialSpec, state: bytes, task: Task) -> Manifest:
    """Write a trained adapter as a search keeps it."""
    confirmed, info = host.confirm(spec, state), host.info()
    folder.mkdir()
    for name, content in confirmed.files.items():
        (folder / name).write_bytes(content)
    known = {"base_digest": info.base.weight_digest, "data_fingerprint": info.data_fingerprint}
    base, hyper = BaseModelRef(info.base.path), spec.hyperparameters
    return seal(folder, manifest_of(task, base, hyper, spec.trial_id, probe=confirmed.probe, **known))


class World(TrialBase):
    """One base with rows for a classifier."""

    def __init__(
        self,
        folder: Path,
        family: str = "bert",
        dtype: torch.dtype | None = None,
        pooling: Pooling = "class",
        layers: int = 2,
    ) -> None:
        self.base = save_base(folder / "base", family, layers)
        self.data = make_data(folder / "data", padding_side=load_tokenizer(self.base).padding_side)
        self.load(classifier(2, pooling), dtype)

    def mixed_specs(self) -> list[TrialSpec]:
        """Trials that differ in all that may differ within a pack."""
        half, third = len(self.names) // 2, tuple(self.names[1::3])
        first, second = self.names[:half], self.names[half:]
        return [
            self.spec("1"),
            self.spec("2", rank=8, scale=2.0, target_modules=tuple(first), learning_rate=5e-3, weight_decay=0.1),
            self.spec("3", rank=2, sigma="sqrt", batch_size=5, lr_schedule="cosine", max_grad_norm=0.0, adam_beta1=0.8),
            self.spec("4", rank=6, sigma="output", target_modules=tuple(second), warmup_ratio=0.3, scale=0.5),
            self.spec("5", rank=8, sigma="none", basis="bottom", batch_size=16, head_learning_rate=1e-2),
            self.spec("6", rank=3, basis="gaussian", target_modules=third, lr_schedule="constant", adam_beta2=0.98),
            self.lora("11"),
            self.lora("12", {"rank": 7, "scale": 2.0}, target_modules=tuple(first), learning_rate=5e-3),
            self.lora("13", {"rank": 5, "scale": 0.5}, target_modules=tuple(second), max_grad_norm=0.0),
        ]

    def lora(self, trial_id: str, own: dict[str, Any] | None = None, **common: Any) -> TrialSpec:
        fields = get_method("lora").fields({"rank": 4, **(own or {})}, {})
        return self.spec(trial_id, method="lora", **{"rank": 0, **fields, **common})

    def dora(self, trial_id: str) -> TrialSpec:
        """Return a trial that cannot share passes: DoRA scales the base's weights."""
        dora = PeftSettings("LORA", {"use_dora": True, "r": 4}, {})
        return self.spec(trial_id, method="dora", rank=0, peft=dora)

    def join(self, pack: Pack, specs: Sequence[TrialSpec], snapshots: Sequence[Snapshot] = ()) -> list[Slot]:
        padded = [*snapshots, *[None] * (len(specs) - len(snapshots))]
        return [pack.join(spec, self.data, snapshot) for spec, snapshot in zip(specs, padded, strict=True)]

    def lone(self, spec: TrialSpec, until: int, snapshot: Snapshot | None = None) -> Snapshot:
        """Run a trial by itself, the reference, and return its state after a report."""
        return run_alone(spec, self.data, self.model, self.factors, until, snapshot)


@pytest.fixture
def make_world(tmp_path):
    """Make a world with a base of the given family and precision."""
    return lambda family="bert", **options: World(tmp_path, family, **options)


@pytest.fixture(scope="session")
def made_world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(made_world):
    """A copy of the one that is made once: its files are shared, `make_world` makes some for a test alone."""
    copy = deepcopy(made_world, {id(made_world.data): made_world.data})
    copy.factors = LoadedFactors(copy.model, copy.model, copy.names)
    return copy


@pytest.fixture
def other_data(tmp_path):
    """A task with three labels."""
    return make_data(tmp_path / "other", num_labels=3)

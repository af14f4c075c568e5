"""A whole model: the base with the update added to its weights, and its tokenizer. Plain transformers load it.

Where the head reads a pool that transformers do not know, it is a folder for sentence-transformers.

A warning, also in its README.md, says where the base's type rounds much of the update away.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from loraxs_search.errors import UsageError
from loraxs_search.home import write_atomic
from loraxs_search.methods._base import Method
from loraxs_search.methods._peft import unloaded
from loraxs_search.methods.export._base import ExportFormat, ExportOptions, LoadedAdapter
from loraxs_search.methods.export._sentence_encoder import encoding_page, write_pooled_head
from loraxs_search.records.task import Serving
from loraxs_search.tasks.asking import asked_as_in_training, between_texts, generation_options
from loraxs_search.tasks.kinds import kind_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_logger = logging.getLogger(__name__)
_MAX_MERGE_LOSS = 0.05
_ROUNDED = (
    "The merged model's logits differ from the adapter's by {:.0%} of what the adapter adds to the base's, since {}"
    " rounds small updates away. `pull --format merged --dtype float32` keeps them, in a larger file."
)


class Merged(ExportFormat):
    """`--dtype float32` keeps an update that the base's own type would round away."""

    name: ClassVar[str] = "merged"
    options: ClassVar[frozenset[str]] = frozenset({"dtype"})
    layout: ClassVar[int] = 4

    @classmethod
    def fits(cls, method: Method) -> bool:
        return method.merges

    def write(self, adapter: LoadedAdapter, folder: Path, options: ExportOptions) -> None:
        from loraxs_search.base_model.head import head_names
        from loraxs_search.base_model.library import quiet
        from loraxs_search.base_model.pooling import pooling_of

        is_pooled = pooling_of(adapter.base) != "class" and not _says_pooling(adapter)
        serving = adapter.serving  # of the base as it was
        merged, notice = _merge(adapter)
        if notice:
            _logger.warning("%s", notice)
        if serving is not None:
            _set_generation(merged, serving, adapter.tokenizer)
        page = encoding_page(adapter, notice) if is_pooled else _page(adapter, serving, notice)
        write_atomic(folder / "README.md", page)
        if is_pooled:
            write_pooled_head(merged, adapter, folder)
        with quiet():  # of a progress bar
            whole = cast("PreTrainedModel", merged.base_model) if is_pooled else merged
            whole.save_pretrained(str(folder))
        if head_names(merged):
            _load_in_float32(folder / "config.json")
        adapter.tokenizer.save_pretrained(str(folder))


_CLASSIFIER_POOLING = {  # what architectures with such a key call it
    "modernbert": {"cls": "cls", "mean": "mean"},
    "eurobert": {"cls": "bos", "mean": "mean"},
}


def _says_pooling(adapter: LoadedAdapter) -> bool:
    """Have the base's configuration say what the head reads, where it has a place for that, as ModernBERT's has."""
    from loraxs_search.base_model.pooling import pooling_of

    config = adapter.base.config
    value = _CLASSIFIER_POOLING.get(config.model_type, {}).get(pooling_of(adapter.base))
    if value is not None:
        config.classifier_pooling = value
    return value is not None


def _merge(adapter: LoadedAdapter) -> tuple[PreTrainedModel, str]:
    """Return the base with the update in its weights, and what people should know of it."""
    from loraxs_search.methods.verification import merge_loss, reference_logits

    adapted, probe = adapter.peft, adapter.manifest.probe
    with_update = reference_logits(adapted, probe.input_ids)
    with _updates_off(adapted):
        without = reference_logits(adapted, probe.input_ids)
    try:
        merged = unloaded(adapted, merge=True)
    except (NotImplementedError, ValueError) as error:
        raise UsageError(
            f"`--format merged` must be of an update that PEFT can add to the weights, but it says: {error}",
            hint="leave --format out: native is the adapter as it was trained",
        ) from error
    loss = merge_loss(merged, with_update, without, probe)
    return merged, _ROUNDED.format(loss, str(merged.dtype).removeprefix("torch.")) if loss > _MAX_MERGE_LOSS else ""


def _load_in_float32(path: Path) -> None:
    """Have transformers load a model in float32 by default: in the body's type, it would round the trained head."""
    config = json.loads(path.read_bytes())
    write_atomic(path, json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")


def _page(adapter: LoadedAdapter, serving: Serving | None, notice: str) -> str:
    task = adapter.manifest.task
    page = f"""# {task.registered_name}

{notice}

```python
import transformers
model = transformers.{kind_of(task).model.auto_class}.from_pretrained(".").eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(".")
```{between_texts(task)}
{asked_as_in_training(serving)}"""
    return page.replace("\n\n\n", "\n")


def _set_generation(model: PreTrainedModel, serving: Serving, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set how a model writes by default; stop strings need a tokenizer at each call, so they stay out."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        **generation_options(serving),
        eos_token_id=tokenizer.convert_tokens_to_ids(list(serving.ends)),
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@contextlib.contextmanager
def _updates_off(model: PeftModel) -> Iterator[None]:
    """Compute without the adapter's update while the block runs, but with its trained head."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)

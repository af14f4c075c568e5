"""A whole model: the base with the update added to its weights, and its tokenizer. Plain transformers load it.

Where the head reads a pool that transformers do not know, it is a folder for sentence-transformers.

A warning, also in its README.md, says where the base's type rounds much of the update away.
"""

from __future__ import annotations

import json
import logging
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
    from transformers import PreTrainedModel

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
        from transformers import GenerationConfig

        from loraxs_search.base_model.layers import head_names, quiet
        from loraxs_search.base_model.reading import pooling_of

        config, pooling = adapter.base.config, pooling_of(adapter.base)
        says = _CLASSIFIER_POOLING.get(config.model_type, {}).get(pooling)
        if says is not None:
            config.classifier_pooling = says
        is_pooled = pooling != "class" and says is None
        serving = adapter.serving  # of the base as it was
        merged, notice = _merge(adapter)
        if notice:
            _logger.warning("%s", notice)
        if serving is not None:  # stop strings need a tokenizer at each call, so they stay out
            merged.generation_config = GenerationConfig(
                **generation_options(serving),
                eos_token_id=adapter.tokenizer.convert_tokens_to_ids(list(serving.ends)),
                bos_token_id=adapter.tokenizer.bos_token_id,
                pad_token_id=adapter.tokenizer.pad_token_id,
            )
        page = encoding_page(adapter, notice) if is_pooled else _page(adapter, serving, notice)
        write_atomic(folder / "README.md", page)
        if is_pooled:
            write_pooled_head(merged, adapter, folder)
        with quiet():  # of a progress bar
            whole = cast("PreTrainedModel", merged.base_model) if is_pooled else merged
            whole.save_pretrained(str(folder))
        if head_names(merged):  # loaded in the body's type by default, it would round the trained head
            stored = json.loads((folder / "config.json").read_bytes())
            write_atomic(folder / "config.json", json.dumps({**stored, "dtype": "float32"}, indent=2) + "\n")
        adapter.tokenizer.save_pretrained(str(folder))


_CLASSIFIER_POOLING = {  # what architectures with such a key call it
    "modernbert": {"cls": "cls", "mean": "mean"},
    "eurobert": {"cls": "bos", "mean": "mean"},
}


def _merge(adapter: LoadedAdapter) -> tuple[PreTrainedModel, str]:
    """Return the base with the update in its weights, and what people should know of it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    from loraxs_search.methods.verification import reference_logits

    adapted, probe = adapter.peft, adapter.manifest.probe
    with_update = reference_logits(adapted, probe.input_ids)
    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:  # without the update, but with the trained head
        layer.enable_adapters(False)
    without = reference_logits(adapted, probe.input_ids)
    for layer in layers:
        layer.enable_adapters(True)
    try:
        merged = unloaded(adapter.base, merge=True)
    except (NotImplementedError, ValueError) as error:
        raise UsageError(
            f"`--format merged` must be of an update that PEFT can add to the weights, but it says: {error}",
            hint="leave --format out: native is the adapter as it was trained",
        ) from error
    # How far merging moved the logits, as a share of what the update moves them by at most.
    effect = float((with_update - without).abs().max())
    lost = float((reference_logits(merged, probe.input_ids) - with_update).abs().max())
    loss = lost / effect if effect else 0.0
    return merged, _ROUNDED.format(loss, str(merged.dtype).removeprefix("torch.")) if loss > _MAX_MERGE_LOSS else ""


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

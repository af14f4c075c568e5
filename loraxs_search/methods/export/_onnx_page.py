"""What is in a folder of `--format onnx`: the names of its files, and README.md with the code that asks them."""

from __future__ import annotations

from loraxs_search.methods.export._base import OnnxPrecision
from loraxs_search.methods.export._onnx_precision import LIMITS
from loraxs_search.records.adapter import Manifest
from loraxs_search.records.task import Task
from loraxs_search.tasks.asking import between_texts
from loraxs_search.tasks.kinds import kind_of

MODEL, ADAPTER_FILE, ABOUT = "model.onnx", "adapter.safetensors", "onnx.json"
_STORED = "It computes in float32; matrices are stored as {}, which moves answers by {:g} at most on a few sentences."
_PRECISIONS = {"": "In float32."} | {name: _STORED.format(name, limit) for name, limit in LIMITS.items()}


def is_tagger(task: Task) -> bool:
    """Whether an adapter answers for each token of a row."""
    return kind_of(task).model.auto_class == "AutoModelForTokenClassification"


def onnx_page(manifest: Manifest, precision: OnnxPrecision | None) -> str:
    """Return README.md: what the files are, and the code that asks them."""
    task = manifest.task
    texts = f'"{task.text}"' if task.text_pair is None else f'("{task.text}", "{task.text_pair}")'
    answer = "the label's is the largest" if task.labels else "the first one is the number"
    code, of, shown = ("", "row", "logits")
    if is_tagger(task):
        code, of, shown = _TAGS, "token", "tags"
    return f"""# {task.registered_name}

A LoRA-XS adapter for `{manifest.base_model.id}`, for any ONNX runtime. {_PRECISIONS[precision or ""]}

- `{MODEL}`: the base, with the frozen A and B of each layer. The same for all adapters whose `{ABOUT}` has its sha256.
- `{ADAPTER_FILE}`: what a row brings, each without its first axis: `cores` (C = scale * R with the singular values, for
  each layer), `num_labels`, and the head.
- `{ABOUT}`: labels, max_length, names of inputs. Tokenizer: the other files.

```python
import hashlib, json, pathlib
import numpy as np, onnxruntime, transformers
from safetensors.numpy import load_file

about = json.loads(pathlib.Path("{ABOUT}").read_bytes())
digest = hashlib.sha256(pathlib.Path("{MODEL}").read_bytes()).hexdigest()
assert digest == about["model"]["sha256"], "the adapter is of another graph"
session = onnxruntime.InferenceSession("{MODEL}")
tokenizer = transformers.AutoTokenizer.from_pretrained(".", padding_side=about["padding_side"])
adapter = load_file("{ADAPTER_FILE}")

def logits(texts, adapters):
    "Each row has its own adapter; smaller ones are filled up with zeros."
    tokens = tokenizer(texts, truncation=True, max_length=about["max_length"], padding=True, return_tensors="np")
    inputs = {{name: tokens[name].astype(np.int64) for name in about["token_inputs"]}}
    for name in about["row_inputs"]:
        values = [adapter[name] for adapter in adapters]
        widest = np.max([value.shape for value in values], axis=0)
        filled = [np.pad(v, [(0, most - size) for most, size in zip(widest, v.shape)]) for v in values]
        inputs[name] = np.stack(filled)
    return session.run(None, inputs)[0]
{code}
texts = [{texts}]
print({shown}(texts, [adapter] * len(texts)))
```

Of a {of}'s logits, {answer}; beyond its row's `num_labels` they are -inf. Rows may bring adapters of other tasks, whose
`max_length` may differ.{between_texts(task)}
"""


_TAGS = """
def tags(texts, adapters):
    "The tag of each word: that of its first token; O where the text is longer than max_length."
    texts = [" ".join(text.split()) for text in texts]
    options = {"truncation": True, "max_length": about["max_length"], "padding": True}
    spans, found = tokenizer(texts, return_offsets_mapping=True, **options)["offset_mapping"], []
    for text, own, ids in zip(texts, spans, logits(texts, adapters).argmax(-1)):
        end, row = -1, []
        for word in text.split():
            start, end = end + 1, end + 1 + len(word)
            first = [about["labels"][i] for (left, right), i in zip(own, ids) if left < end and right > start][:1]
            row.append(first[0] if first else "O")
        found.append(row)
    return found
"""

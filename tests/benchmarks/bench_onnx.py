"""What the precisions of an ONNX export cost and change, on the test rows of the adapter's task.

    python tests/benchmarks/bench_onnx.py --name movie-reviews --json onnx.json

NAME is a classifier of your registry, or a folder. Each precision answers the same batches in turn, in one process with
one thread, and the time is what the processor spent: other programs on the machine disturb it little. `dynamic-int8` is
what `pull` does not offer: onnxruntime's own quantisation, whose operators compute in int8. Rows are in batches of 32
of similar lengths, and single rows are of the middle one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

from loraxs_search import load_tokenizer, pull
from loraxs_search.methods.export import ExportOptions, converted
from loraxs_search.methods.loading import read_manifest
from loraxs_search.tasks.prepared import load_data

ROWS, SINGLE = 32, 40
Batch = dict[str, npt.NDArray[Any]]


def batches_of(folder: Path, about: dict[str, Any], adapter: Batch, limit: int) -> tuple[list[Batch], list[int]]:
    """Return the test rows as inputs, and their labels, in the same order."""
    rows, tokenizer = load_data(read_manifest(folder).task).rows["test"], load_tokenizer(folder)
    order = sorted(range(len(rows.texts))[:limit], key=lambda row: len(rows.texts[row]))
    batches = []
    for start in range(0, len(order), ROWS):
        texts = [rows.texts[row] for row in order[start : start + ROWS]]
        tokens = tokenizer(texts, truncation=True, max_length=about["max_length"], padding=True, return_tensors="np")
        own = {name: tokens[name].astype(np.int64) for name in about["token_inputs"]}
        batches.append(own | {name: np.repeat(value[None], len(texts), 0) for name, value in adapter.items()})
    return batches, [int(rows.labels[row]) for row in order]


def shares(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    found = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(found / found.sum(-1, keepdims=True))


def timed(session: onnxruntime.InferenceSession, batch: Batch) -> tuple[npt.NDArray[Any], float]:
    started = time.process_time()
    (logits,) = session.run(None, batch)
    return logits, time.process_time() - started


def measure(paths: dict[str, Path], batches: list[Batch], labels: list[int]) -> list[dict[str, Any]]:
    """Ask each file, the one in float32 first, for all batches in turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    open_ = {name: onnxruntime.InferenceSession(str(path), options) for name, path in paths.items()}
    found = [{name: timed(session, batch) for name, session in open_.items()} for batch in batches]
    one = {name: value[:1] for name, value in batches[len(batches) // 2].items()}
    singles = [{name: timed(session, one)[1] for name, session in open_.items()} for _ in range(SINGLE)]
    rows, whole = list[dict[str, Any]](), np.concatenate([it["float32"][0] for it in found])
    for name, path in paths.items():
        logits = np.concatenate([it[name][0] for it in found])
        moved, said = np.abs(shares(logits) - shares(whole)).max(-1), logits.argmax(-1)
        rows.append(
            {
                "precision": name,
                "bytes": path.stat().st_size,
                "time": statistics.median(it[name][1] / it["float32"][1] for it in found[1:]),
                "single_time": statistics.median(it[name] / it["float32"] for it in singles),
                "changed_labels": float((said != whole.argmax(-1)).mean()),
                "largest_move": float(moved.max()),
                "mean_move": float(moved.mean()),
                "accuracy": float((said == np.array(labels)).mean()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="movie-reviews")
    parser.add_argument("--limit", type=int, default=2000, help="test rows, at most")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = pull(options.name)
    made = {
        name or "float32": converted(folder, "onnx", ExportOptions(precision=name)) for name in (None, "fp16", "int8")
    }
    about = json.loads((made["float32"] / "onnx.json").read_bytes())
    adapter = load_file(made["float32"] / "adapter.safetensors")
    with tempfile.TemporaryDirectory() as temporary:
        paths = {name: path / "model.onnx" for name, path in made.items()}
        paths["dynamic-int8"] = Path(temporary, "dynamic.onnx")
        given = {"per_channel": True, "weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul", "Gemm"]}
        quantize_dynamic(paths["float32"], paths["dynamic-int8"], **given)
        rows = measure(paths, *batches_of(folder, about, adapter, options.limit))
    for row in rows:
        print(
            f"{row['precision']:12} {row['bytes']:12,} bytes, time {row['time']:.2f}, of single rows"
            f" {row['single_time']:.2f}, {row['changed_labels']:.2%} of labels change, probabilities move by"
            f" {row['largest_move']:.4f} at most, {row['mean_move']:.5f} on average, accuracy {row['accuracy']:.4f}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

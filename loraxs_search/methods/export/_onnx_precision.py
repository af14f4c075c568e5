"""How an ONNX file stores its matrices: as float16 or int8, which a runtime makes float32 before it computes.

Only standard operators read them back. A runtime does so for matrices once, when it loads the file, so they compute as
fast as float32; rows of an embedding are read back as they are used. Activations, R and the head are float32 always.
Operators that compute in int8 are faster, and not offered: they change 1.9 % of labels (tests/benchmarks/README.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from loraxs_search.methods.export._base import OnnxPrecision

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

LIMITS: dict[str, float] = {"fp16": 0.002, "int8": 0.05}
"""How far a probability may move; a number by so much of the largest one, or of 1. Measured: 0.0008 and 0.023."""
PRECISION = "precision"  # its name among the metadata of a file
_LEAST = 1024  # numbers; smaller matrices stay as they are
_BLOCK = 32  # numbers that share a scale


def stored_as(model: ModelProto, precision: OnnxPrecision) -> None:
    """Replace the matrices of a float32 model by what is read back to nearly the same; it is changed in place."""
    from onnx import TensorProto as Type

    graph, readers = model.graph, dict[str, list[Any]]()
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, []).append((node.op_type, place))
    first, kept, behind = list[Any](), list[Any](), dict[str, Any]()
    for tensor in graph.initializer:
        if tensor.data_type != Type.FLOAT or len(tensor.dims) != 2 or np.prod(tensor.dims) < _LEAST:
            kept.append(tensor)
            continue
        is_table = set(readers.get(tensor.name, ())) == {("Gather", 0)}
        stored = _Stored(tensor, precision, is_table)
        kept += stored.tensors
        if is_table:
            behind[tensor.name] = stored
        else:
            first += stored.whole()
    nodes = list[Any]()
    for node in graph.node:
        table = behind.get(node.input[0]) if node.op_type == "Gather" else None
        nodes += [node] if table is None else table.rows(node.input[1], node.output[0])
    for field, values in ((graph.node, [*first, *nodes]), (graph.initializer, kept)):
        del field[:]
        field.extend(values)


class _Stored:
    """A matrix (rows, columns) as it is stored, and the nodes that read it back.

    int8 has a scale for each 32 numbers of a column, those of one output: codes (blocks, 32, columns). Of a table whose
    rows are read one by one, for each 32 of a row: codes (rows, blocks, 32). Where 32 is no divisor, for all of them.
    """

    def __init__(self, tensor: TensorProto, precision: OnnxPrecision, is_table: bool) -> None:
        from onnx import numpy_helper

        values, self.name = numpy_helper.to_array(tensor), tensor.name
        self._is_half, (rows, columns) = precision == "fp16", values.shape
        parts: dict[str, npt.NDArray[Any]] = {"stored": values.astype(np.float16)}
        if not self._is_half:
            axis, side = (2, columns) if is_table else (1, rows)
            width = _BLOCK if side % _BLOCK == 0 else side
            blocks = values.reshape((rows, -1, width) if is_table else (-1, width, columns))
            scales = np.abs(blocks).max(axis, keepdims=True) / np.float32(127)
            codes = np.round(blocks / np.where(scales == 0, 1, scales)).astype(np.int8)
            shape = {"columns": np.array([columns])} if is_table else {"shape": np.array(values.shape)}
            parts = {"stored": codes, "scales": scales.astype(np.float32), **shape}
        self.tensors = [numpy_helper.from_array(part, f"{self.name}.{name}") for name, part in parts.items()]

    def whole(self) -> list[NodeProto]:
        """Return the nodes that give the matrix under its own name."""
        return self._read(f"{self.name}.stored", f"{self.name}.scales", f"{self.name}.shape", self.name)

    def rows(self, indices: str, output: str) -> list[NodeProto]:
        """Return the nodes that give some rows, of whatever shape their indices have."""
        from onnx import helper

        stored, scales, leading, shape = (f"{output}.{part}" for part in ("stored", "scales", "leading", "shape"))
        nodes = [helper.make_node("Gather", [f"{self.name}.stored", indices], [stored])]
        if not self._is_half:
            nodes += [
                helper.make_node("Gather", [f"{self.name}.scales", indices], [scales]),
                helper.make_node("Shape", [indices], [leading]),
                helper.make_node("Concat", [leading, f"{self.name}.columns"], [shape], axis=0),
            ]
        return [*nodes, *self._read(stored, scales, shape, output)]

    def _read(self, stored: str, scales: str, shape: str, output: str) -> list[NodeProto]:
        from onnx import TensorProto as Type
        from onnx import helper

        if self._is_half:
            return [helper.make_node("Cast", [stored], [output], to=Type.FLOAT)]
        numbers, blocks = f"{output}.numbers", f"{output}.blocks"
        return [
            helper.make_node("Cast", [stored], [numbers], to=Type.FLOAT),
            helper.make_node("Mul", [numbers, scales], [blocks]),
            helper.make_node("Reshape", [blocks, shape], [output]),
        ]

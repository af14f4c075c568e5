"""A base as one ONNX graph: A and B are in it, and each row of a batch brings its own C and head.

Letters: n rows of T tokens, m adapted layers, r the rank of a batch, k that of the graph, L outputs. C (r, r) is R with
scale and singular values multiplied in, as in `bank/bank_model.py`; A and B are orthonormal, so adapters of any
sigma share them. A smaller C is filled up with zeros.

A file may store its matrices as int8, which a runtime makes float32 before it computes. Only standard
operators read them back. A runtime does so for matrices once, when it loads the file, so they compute as fast as
float32; rows of an embedding are read back as they are used. Activations, R and the head are float32 always. Operators
that compute in int8 are faster, and not offered: they change 1.9 % of labels (tests/benchmarks/README.md).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from loraxs_search.base_model.layers import output_head
from loraxs_search.base_model.reading import dummy_inputs
from loraxs_search.methods.export._base import OnnxPrecision

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from transformers import PreTrainedModel

CORES, NUM_LABELS, LOGITS = "cores", "num_labels", "logits"
PRECISION = "precision"  # its name among the metadata of a file
_LEAST = 1024  # numbers; smaller matrices stay as they are
_BLOCK = 32  # numbers that share a scale
_ROWS, _RANK, _LABELS = 3, 5, 4  # of the traced batch: they differ from each other, and are not 1


class _Rows:
    """What the rows of a pass bring: C, (n, m, r, r), and parameters of the head, each (n, *shape)."""

    cores: Tensor
    head: Mapping[str, Tensor]


class _CoreLinear(nn.Module):
    """y_i = W x_i + B C_i A x_i.

    Args:
        a, b: A (k, in) and B (out, k).
        place: Of the layer among the adapted ones.
    """

    def __init__(self, base_layer: nn.Module, a: Tensor, b: Tensor, place: int, rows: _Rows) -> None:
        super().__init__()
        self.base_layer, self._place, self._rows = base_layer, place, rows
        self.a_t = nn.Parameter(a.T.contiguous(), requires_grad=False)  # (in, k)
        self.b_t = nn.Parameter(b.T.contiguous(), requires_grad=False)  # (k, out)

    @property
    def weight(self) -> Tensor:
        """The base's own weight, for models that ask a layer for it."""
        return self.base_layer.get_parameter("weight")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x)  # (n, T, out), or (n T, out)
        cores = self._rows.cores[:, self._place]  # (n, r, r)
        rank = cores.shape[-1]
        z = torch.matmul(x, self.a_t[:, :rank])
        z_by_row = z if z.dim() == 3 else z.reshape(cores.shape[0], -1, rank)  # (n, T, r)
        u = torch.bmm(z_by_row, cores.mT).reshape(z.shape)
        return y + torch.matmul(u, self.b_t[:rank])


class _RowLinear(nn.Module):
    """y_i = W_i x_i + b_i, a layer of the head that each row brings."""

    def __init__(self, name: str, rows: _Rows) -> None:
        super().__init__()
        self._name, self._rows = name, rows
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)  # says the type to those who ask the head

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (self._rows.head.get(f"{self._name}.{part}") for part in ("weight", "bias"))
        assert weight is not None
        y = torch.bmm(x if x.dim() == 3 else x[:, None], weight.mT)  # (n, T, out): some heads read all positions
        y = y if bias is None else y + bias[:, None]
        return y if x.dim() == 3 else y[:, 0]


class RowGraph(nn.Module):
    """A base that computes what `model` is replaced with: it is changed, for good.

    Args:
        model: A classifier in float32, without PEFT.
        pairs: A (k, in) and B (out, k), float32, of each adapted layer, in the order of C.
        head: Names and shapes of the head's parameters that rows bring, all of linear layers.
        tokens: Names of what a tokenizer gives.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: Mapping[str, tuple[Tensor, Tensor]],
        head: Mapping[str, Sequence[int]],
        tokens: Sequence[str],
    ) -> None:
        super().__init__()
        self.model, self._rows, self._tokens, self._head = model, _Rows(), tuple(tokens), dict(head)
        self._out, self._num_modules = output_head(model)[0], len(pairs)
        self.rank = next(len(a) for a, _ in pairs.values())
        for place, (name, (a, b)) in enumerate(pairs.items()):
            model.set_submodule(name, _CoreLinear(model.get_submodule(name), a, b, place, self._rows))
        for name in dict.fromkeys(parameter.rpartition(".")[0] for parameter in head):
            model.set_submodule(name, _RowLinear(name, self._rows))

    def forward(self, tokens: list[Tensor], cores: Tensor, num_labels: Tensor, head: list[Tensor]) -> Tensor:
        """Return logits (n, L), -inf beyond the labels of a row, whose number is (n, 1)."""
        self._rows.cores, self._rows.head = cores, dict(zip(self._head, head, strict=True))
        logits: Tensor = self.model(**dict(zip(self._tokens, tokens, strict=True))).logits
        beyond = torch.arange(logits.shape[-1]) >= num_labels  # (n, L)
        return logits.masked_fill(beyond, float("-inf"))

    def exported(self, precision: OnnxPrecision | None) -> bytes:
        """Return the graph as an ONNX file, the same each time: nothing in it says when or where it was made.

        Args:
            precision: How its matrices are stored; None means float32. The file's metadata say it.
        """
        inputs = dummy_inputs(self.model, _ROWS)
        tokens = [inputs.get(name, torch.zeros_like(inputs["input_ids"])) for name in self._tokens]
        rank = min(_RANK, self.rank)
        outputs = {name for name in self._head if name.rpartition(".")[0] == self._out}
        wide = {name: (_LABELS, *shape[1:]) if name in outputs else shape for name, shape in self._head.items()}
        cores = torch.zeros(_ROWS, self._num_modules, rank, rank)
        given = tokens, cores, torch.full((_ROWS, 1), _LABELS), [torch.zeros(_ROWS, *each) for each in wide.values()]
        axes = (
            [{0: "rows", 1: "tokens"} for _ in tokens],
            {0: "rows", 2: "rank", 3: "rank"},
            {0: "rows"},
            [{0: "rows", 1: "labels"} if name in outputs else {0: "rows"} for name in self._head],
        )
        log = logging.getLogger("torch.onnx")
        level = log.level
        log.setLevel(logging.ERROR)  # the exporter says of itself, such as that torchvision is not installed
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = torch.onnx.export(
                    self.eval(),
                    given,
                    input_names=[*self._tokens, CORES, NUM_LABELS, *self._head],
                    output_names=[LOGITS],
                    dynamic_shapes=axes,
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
        finally:
            log.setLevel(level)
        assert program is not None
        model: Any = program.model_proto
        graph = model.graph
        for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
            part.ClearField("metadata_props")  # traces of nodes name files of this machine
            part.ClearField("doc_string")
        if precision is not None:
            _store_as_int8(model)
        model.metadata_props.add(key=PRECISION, value=precision or "float32")
        content: bytes = model.SerializeToString(deterministic=True)
        return content


def _store_as_int8(model: ModelProto) -> None:
    """Replace the matrices of a float32 model by what is read back to nearly the same; it is changed in place.

    A matrix (rows, columns) has a scale for each 32 numbers of a column, those of one output: codes (blocks, 32,
    columns). A table whose rows are read one by one has one for each 32 of a row: codes (rows, blocks, 32). Where 32 is
    no divisor, all of them share one.
    """
    from onnx import TensorProto as Type
    from onnx import helper, numpy_helper

    def read_back(codes: str, scales: str, shape: str, output: str) -> list[NodeProto]:
        numbers, blocks = f"{output}.numbers", f"{output}.blocks"
        return [
            helper.make_node("Cast", [codes], [numbers], to=Type.FLOAT),
            helper.make_node("Mul", [numbers, scales], [blocks]),
            helper.make_node("Reshape", [blocks, shape], [output]),
        ]

    graph, readers = model.graph, dict[str, set[tuple[str, int]]]()
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers.setdefault(name, set()).add((node.op_type, place))
    nodes, kept, tables = list[Any](), list[Any](), set[str]()
    for tensor in graph.initializer:
        if tensor.data_type != Type.FLOAT or len(tensor.dims) != 2 or np.prod(tensor.dims) < _LEAST:
            kept.append(tensor)
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        (rows, columns), is_table = values.shape, readers.get(name) == {("Gather", 0)}
        axis, side = (2, columns) if is_table else (1, rows)
        width = _BLOCK if side % _BLOCK == 0 else side
        blocks = values.reshape((rows, -1, width) if is_table else (-1, width, columns))
        scales = np.abs(blocks).max(axis, keepdims=True) / np.float32(127)
        parts = {
            "codes": np.round(blocks / np.where(scales == 0, 1, scales)).astype(np.int8),
            "scales": scales.astype(np.float32),
            "shape": np.array([columns] if is_table else values.shape),
        }
        kept += [numpy_helper.from_array(stored, f"{name}.{part}") for part, stored in parts.items()]
        if is_table:
            tables.add(name)
        else:
            nodes += read_back(f"{name}.codes", f"{name}.scales", f"{name}.shape", name)
    for node in graph.node:
        if node.op_type != "Gather" or node.input[0] not in tables:
            nodes.append(node)
            continue
        (name, indices), (output,) = node.input, node.output  # indices of any shape
        codes, scales, leading, shape = (f"{output}.{part}" for part in ("codes", "scales", "leading", "shape"))
        nodes += [
            helper.make_node("Gather", [f"{name}.codes", indices], [codes]),
            helper.make_node("Gather", [f"{name}.scales", indices], [scales]),
            helper.make_node("Shape", [indices], [leading]),
            helper.make_node("Concat", [leading, f"{name}.shape"], [shape], axis=0),
            *read_back(codes, scales, shape, output),
        ]
    for field, own in ((graph.node, nodes), (graph.initializer, kept)):
        del field[:]
        field.extend(own)

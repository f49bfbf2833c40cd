"""A float32 ONNX file's weights as int8: word tables with a scale per row, the rest per channel.

onnxruntime's own quantiser makes a table behind a Gather uint8 with one scale for all rows,
whatever its settings, so that one large row coarsens every word. Here a table is int8 with a scale
per row; rows and scales are gathered by the same ids and multiplied. The rest is onnxruntime's
dynamic quantisation: weights of matrix products per channel, activations at run time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from tasks.kd.digests import commit_file

_LARGEST = 127


def write_int8(source: Path, target: Path) -> None:
    """Quantise a float32 file's weights to int8; activations are quantised at run time."""
    model = onnx.load(source)
    # onnxruntime transposes Gemm's weights, so shapes noted before would contradict those after.
    del model.graph.value_info[:]
    quantise_tables(model.graph)
    temporary = target.with_name(f".{target.name}.tmp")
    with _quiet_quantiser():
        quantize_dynamic(
            model,
            temporary,
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    commit_file(temporary, target)


def quantise_tables(graph: Any) -> None:
    """Replace each `Gather(table, ids)` by `Gather(int8 rows, ids) * Gather(scales, ids)`."""
    tables = {
        weight.name: weight
        for weight in graph.initializer
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) == 2
    }
    nodes: list[NodeProto] = []
    done: set[str] = set()
    for node in graph.node:
        table = tables.get(node.input[0]) if _takes_rows(node) else None
        if table is None:
            nodes.append(node)
            continue
        if table.name not in done:
            done.add(table.name)
            rows, scales = quantise_rows(numpy_helper.to_array(table))
            graph.initializer.append(numpy_helper.from_array(rows, f"{table.name}_rows"))
            graph.initializer.append(numpy_helper.from_array(scales, f"{table.name}_scales"))
        nodes += _dequantising(node, table.name)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for name in done - used:
        graph.initializer.remove(tables[name])


def quantise_rows(
    table: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A table's rows int8 [V, D] and scales float32 [V, 1]: a row's largest number becomes ±127."""
    scales = (np.abs(table).max(axis=1, keepdims=True) / _LARGEST).astype(np.float32)
    scales[scales == 0] = 1
    rows = np.clip(np.rint(table / scales), -_LARGEST, _LARGEST).astype(np.int8)
    return rows, scales


def _takes_rows(node: NodeProto) -> bool:
    axis = next((part.i for part in node.attribute if part.name == "axis"), 0)
    return node.op_type == "Gather" and axis == 0


def _dequantising(node: NodeProto, table: str) -> list[NodeProto]:
    ids, (output,) = node.input[1], node.output
    parts = {kind: f"{output}_{kind}" for kind in ("rows", "scales", "cast")}
    return [
        helper.make_node("Gather", [f"{table}_rows", ids], [parts["rows"]], parts["rows"]),
        helper.make_node("Gather", [f"{table}_scales", ids], [parts["scales"]], parts["scales"]),
        helper.make_node("Cast", [parts["rows"]], [parts["cast"]], parts["cast"], to=1),
        helper.make_node("Mul", [parts["cast"], parts["scales"]], [output], node.name),
    ]


@contextmanager
def _quiet_quantiser() -> Iterator[None]:
    """Silence the quantiser's advice to pre-process: there is nothing left to fold."""

    def matters(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(matters)
    try:
        yield
    finally:
        root.removeFilter(matters)

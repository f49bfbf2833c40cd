"""Tables in int8: each row keeps its own scale, whatever the others hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from tasks.kd.export.int8 import quantise_rows, quantise_tables, write_int8
from tasks.kd.export.onnx import write_onnx
from tasks.kd.export.running import open_session, predict_onnx
from tests.makers.tiny import tiny_model

Table = npt.NDArray[np.float32]


def write_lookup(path: Path, table: Table, *, also_multiplied: bool = False) -> Path:
    """A network that looks ids up in a table, and may multiply by that table afterwards."""
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", "T"])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, ["B", "T", None])
    nodes = [helper.make_node("Gather", ["table", "ids"], ["rows"], "lookup")]
    last = ["rows", "turned"] if also_multiplied else ["rows"]
    if also_multiplied:
        nodes.append(helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul" if also_multiplied else "Identity", last, ["found"]))
    constants = [numpy_helper.from_array(table, "table")]
    graph = helper.make_graph(nodes, "lookup", [ids], [found], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, str(path))
    return path


def look_up(path: Path, ids: list[int]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = open_session(path).run(None, {"ids": np.array([ids])})[0][0]
    return found


def weights_of(path: Path) -> dict[str, npt.NDArray[Any]]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported student; none of these tests changes it."""
    path = tmp_path_factory.mktemp("float32") / "model.onnx"
    write_onnx(tiny_model(2), path)
    return path


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 6)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_a_row_is_right_to_half_a_step_of_its_own_scale(table: Table) -> None:
    rows, scales = quantise_rows(table)
    assert rows.dtype == np.int8
    assert scales.dtype == np.float32
    assert scales.shape == (len(table), 1)
    assert np.abs(rows.astype(int)).max() <= 127
    again = rows.astype(np.float64) * scales
    step = np.abs(table).max(axis=1, keepdims=True).astype(np.float64) / 127
    assert (np.abs(again - table) <= step * 0.5001 + 1e-40).all()


def test_a_row_of_zeros_stays_zero() -> None:
    rows, scales = quantise_rows(np.zeros((2, 3), dtype=np.float32))
    assert not rows.any()
    assert scales.tolist() == [[1.0], [1.0]]


def test_a_loud_row_does_not_coarsen_the_others(tmp_path: Path) -> None:
    """With one scale for all rows the quiet ones would be zeros."""
    quiet = np.linspace(-0.01, 0.01, 64, dtype=np.float32).reshape(8, 8)
    table = np.concatenate([quiet, np.full((1, 8), 1000, dtype=np.float32)])
    write_int8(write_lookup(tmp_path / "table.onnx", table), tmp_path / "table.int8.onnx")
    found = look_up(tmp_path / "table.int8.onnx", list(range(9)))
    np.testing.assert_allclose(found[:8], quiet, atol=0.01 / 127)
    np.testing.assert_allclose(found[8], 1000, rtol=1e-6)


def test_tables_are_int8_with_a_scale_per_row_and_nothing_of_them_is_left_in_float32(
    tmp_path: Path, float32: Path
) -> None:
    write_int8(float32, tmp_path / "model.int8.onnx")
    before, after = weights_of(float32), weights_of(tmp_path / "model.int8.onnx")
    tables = [name for name in before if name.endswith("_embeddings.weight")]
    assert len(tables) == 3, "words, positions, types"
    for name in tables:
        assert name not in after
        assert after[f"{name}_rows"].dtype == np.int8
        assert after[f"{name}_scales"].shape == (len(before[name]), 1)
    large = [name for name, held in after.items() if held.dtype == np.float32 and held.ndim == 2]
    assert all(name.endswith("_scales") for name in large)


def test_a_table_that_is_used_otherwise_too_is_kept_for_that(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    path = write_lookup(tmp_path / "tied.onnx", table, also_multiplied=True)
    model = onnx.load(path)
    quantise_tables(model.graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    np.testing.assert_allclose(look_up(path, [0, 4]), table[[0, 4]] @ table.T, atol=0.1)


def test_shapes_that_were_noted_before_are_left_out(tmp_path: Path, float32: Path) -> None:
    """onnxruntime 1.24 to 1.31 refuses a graph that notes the shape of a weight that it turns."""
    noted = {value.name for value in onnx.load(float32).graph.value_info}
    assert "model.classifier.weight" in noted, "else there is nothing to leave out"
    write_int8(float32, tmp_path / "model.int8.onnx")
    left = {value.name for value in onnx.load(tmp_path / "model.int8.onnx").graph.value_info}
    assert not any(name.startswith("model.") and name.endswith(".weight") for name in left)


@pytest.mark.parametrize("length", [1, 31])
def test_the_int8_file_answers_much_as_the_float32_file_does(
    tmp_path: Path, float32: Path, length: int
) -> None:
    write_int8(float32, tmp_path / "model.int8.onnx")
    ids = [np.random.default_rng(length).integers(4, 60, length).astype(np.int32)]
    found, wanted = (
        predict_onnx(path, ids, pad_token_id=0) for path in (tmp_path / "model.int8.onnx", float32)
    )
    np.testing.assert_allclose(found, wanted, atol=0.3)

"""The served student, run as MLflow runs it, on a small network whose every answer is known."""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tasks.kd.documents.exported import Contract
from tests.makers.documents import make_contract

with warnings.catch_warnings():  # mlflow.pyfunc warns of a type hint in its own base class
    warnings.simplefilter("ignore")
    from mlflow.exceptions import MlflowException

    from tasks.serving import served_student
    from tasks.serving.served_student import ServedStudent, batch_by_length, softmax

LABELS = ["crude", "grain", "ship"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def make_student(
    folder: Path,
    answers: Sequence[int],
    *,
    labels: Sequence[str] = LABELS,
    serve: str = "model.onnx",
    with_types: bool = False,
) -> Path:
    """An exported student that gives the text `word<i>` the label `answers[i]`.

    A bag of words: each token id has a row of logits, summed over the real tokens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = [f"word{index}" for index in range(len(answers))]
    table = np.zeros((len(SPECIAL) + len(words), len(labels)), dtype=np.float32)
    table[0] = 1000.0  # whoever forgets the mask will notice
    for index, answer in enumerate(answers):
        table[len(SPECIAL) + index, answer] = 2.0
    write_network(folder / serve, table, with_types=with_types)
    write_tokenizer(folder / "tokenizer.json", words)
    inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if with_types else ()))
    make_contract(labels, serve=serve, inputs=inputs).write(folder)
    return folder


def write_network(path: Path, table: np.ndarray[Any, Any], *, with_types: bool) -> None:
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if with_types else [])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in names]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", table.shape[1]])
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["logits"], keepdims=0),
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "tokens"),
    ]
    graph = helper.make_graph(nodes, "bag", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write_tokenizer(path: Path, words: Sequence[str]) -> None:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=40)  # as a careless export leaves it; the student undoes it
    tokenizer.save(str(path))


def open_student(folder: Path) -> ServedStudent:
    student = ServedStudent()
    student.load_context(make_context(folder, Contract.read(folder).serve))
    return student


def make_context(folder: Path, serve: str) -> Any:
    files = {"network": serve, "tokenizer": "tokenizer.json", "student": Contract.FILE}
    return SimpleNamespace(artifacts={key: str(folder / name) for key, name in files.items()})


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> ServedStudent:
    folder = tmp_path_factory.mktemp("student")
    return open_student(make_student(folder, [index % 3 for index in range(30)], with_types=True))


def ask(student: ServedStudent, asked: Any, **params: Any) -> pd.DataFrame:
    return student.predict(make_context(Path(), ""), asked, params or None)


def test_each_text_gets_its_label_and_probability_in_order(student: ServedStudent) -> None:
    answer = ask(student, pd.DataFrame({"text": ["word1", "word0 word0", "word5"]}))
    assert list(answer.columns) == ["label", "score"]
    assert answer["label"].tolist() == ["grain", "crude", "ship"]
    e2, e4 = np.exp(2.0), np.exp(4.0)
    assert answer["score"].tolist() == pytest.approx([e2 / (e2 + 2), e4 / (e4 + 2), e2 / (e2 + 2)])


def test_all_scores_add_one_column_per_label_that_sum_to_one(student: ServedStudent) -> None:
    answer = ask(student, pd.DataFrame({"text": ["word1", "word2"]}), all_scores=True)
    columns = [f"score_{label}" for label in LABELS]
    assert list(answer.columns) == ["label", "score", *columns]
    assert answer[columns].sum(axis=1).tolist() == pytest.approx([1.0, 1.0])
    assert answer["score"].tolist() == answer[columns].max(axis=1).tolist()


@pytest.mark.parametrize("serve", ["model.onnx", "model.int8.onnx"])
def test_a_text_scores_the_same_in_any_company(tmp_path: Path, serve: str) -> None:
    folder = make_student(tmp_path, [index % 3 for index in range(30)], serve=serve)
    student = open_student(folder)
    texts = [" ".join(f"word{(3 * i + j) % 30}" for j in range(1 + i % 9)) for i in range(50)]
    together = ask(student, texts, all_scores=True)
    alone = pd.concat([ask(student, [text], all_scores=True) for text in texts], ignore_index=True)
    pd.testing.assert_frame_equal(together, alone)


def test_an_int8_student_is_asked_one_text_at_a_time(tmp_path: Path) -> None:
    student = open_student(make_student(tmp_path, [0, 1, 2], serve="model.int8.onnx"))
    sizes: list[int] = []
    session = student.session

    class Watched:
        def run(self, outputs: list[str], feeds: dict[str, Any]) -> Any:
            sizes.append(len(feeds["input_ids"]))
            return session.run(outputs, feeds)

    student.session = Watched()
    ask(student, ["word0", "word1", "word2"])
    assert sizes == [1, 1, 1]


def test_long_texts_are_cut_at_the_maximum_length(student: ServedStudent) -> None:
    encodings = student.tokenizer.encode_batch(["word1 " * 100])
    assert len(encodings[0]) == 16
    feeds = student.pad(encodings)
    assert feeds["input_ids"].shape == (1, 16)


def test_a_tokenizer_that_cuts_the_beginning_still_does(tmp_path: Path) -> None:
    folder = make_student(tmp_path, [0, 1])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(30, direction="left")
    tokenizer.save(str(folder / "tokenizer.json"))
    answer = ask(open_student(folder), ["word1 " + "word0 " * 13 + "word1 " * 14])
    assert answer["label"].tolist() == [LABELS[1]]


DICTIONARY = pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string()))
# Forms that people send the texts word1 and word2 in, as is and through MLflow.
FORMS: dict[str, Any] = {
    "a table": pd.DataFrame({"text": ["word1", "word2"]}),
    "a table with more columns": pd.DataFrame({"id": [1, 2], "text": ["word1", "word2"]}),
    "a table of one nameless column": pd.DataFrame(["word1", "word2"]),
    "a categorical column": pd.DataFrame({"text": pd.Categorical(["word1", "word2"])}),
    "a column of pandas' texts": pd.DataFrame({"text": pd.array(["word1", "word2"], "string")}),
    "a dictionary column": pd.DataFrame({"text": pd.Series(["word1", "word2"], dtype=DICTIONARY)}),
    "an Arrow table": pa.table({"text": pa.array(["word1", "word2"]).dictionary_encode()}),
    "an Arrow column": pa.chunked_array([["word1"], ["word2"]]),
    "a Series": pd.Series(["word1", "word2"], name="body"),
    "a categorical Series": pd.Series(["word1", "word2"], dtype="category"),
    "an index": pd.Index(["word1", "word2"]),
    "a list": ["word1", "word2"],
    "a tuple": ("word1", "word2"),
    "an array": np.array(["word1", "word2"]),
    "an array of objects": np.array(["word1", "word2"], dtype=object),
    "an array of one column": np.array([["word1"], ["word2"]]),
    "rows of one cell": [["word1"], ["word2"]],
    "records": [{"id": 1, "text": "word1"}, {"text": "word2"}],
    "records of arrays of no dimension": [{"text": np.array(w)} for w in ("word1", "word2")],
    "a mapping": {"text": ["word1", "word2"]},
    "a mapping with an array": {"text": np.array(["word1", "word2"])},
    "a mapping with a Series": {"text": pd.Series(["word1", "word2"]), "id": 7},
    "a table's to_dict()": {"text": {0: "word1", 1: "word2"}},
}
SINGLE: dict[str, Any] = {
    "a text": "word1",
    "a text of NumPy's": np.array("word1"),
    "a record": {"text": "word1"},
    "a record with an array of no dimension": {"text": np.array("word1")},
}
REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (None, r"These are no texts: NoneType\. Send a table with a column `text`"),
    "a number": (7, "These are no texts: int"),
    "bytes": (b"word1", "These are no texts: bytes"),
    "a set": ({"word1"}, "These are no texts: set"),
    "an empty mapping": ({}, r"mapping has no `text`\. Found: no column"),
    "another mapping": ({"body": ["word1"]}, r"mapping has no `text`\. Found: body"),
    "another table": (pd.DataFrame({"body": ["word1"]}), r"no column `text`\. Found: body\. Send"),
    "other records": ([{"body": "word1"}], r"table has no column `text`\. Found: body"),
    "a record without text": ([{"text": "word1"}, {"body": "x"}], "1 of 2 rows .*: row 1"),
    "two columns of one name": (
        pd.DataFrame([["word1", "word2"]], columns=["text", "text"]),
        "several columns `text`",
    ),
    "an array of two columns": (np.array([["word1", "word2"]]), "1 of 1 rows have no text"),
    "bytes in a list": (["word1", b"word2"], "1 of 2 rows have no text .*: row 1"),
    "half of an emoji": (["word1", "word2 \ud83d"], "1 of 2 rows hold half of a surr.*: row 1"),
}


@pytest.mark.parametrize("form", FORMS)
def test_texts_are_taken_in_every_form(student: ServedStudent, form: str) -> None:
    assert ask(student, FORMS[form])["label"].tolist() == ["grain", "ship"]


@pytest.mark.parametrize("form", SINGLE)
def test_one_text_gets_one_answer(student: ServedStudent, form: str) -> None:
    assert ask(student, SINGLE[form])["label"].tolist() == ["grain"]


@pytest.mark.parametrize("form", REFUSED)
def test_what_is_no_text_is_refused_with_what_to_send(student: ServedStudent, form: str) -> None:
    asked, message = REFUSED[form]
    with pytest.raises(MlflowException, match=message) as caught:
        ask(student, asked)
    assert "Send a table with a column `text`" in str(caught.value)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"


def test_the_index_of_a_table_and_a_series_is_kept(student: ServedStudent) -> None:
    table = pd.DataFrame({"text": ["word1", "word2"], "other": [1, 2]}, index=[7, 9])
    assert ask(student, table).index.tolist() == [7, 9]
    assert ask(student, table["text"]).index.tolist() == [7, 9]


def test_an_empty_table_gives_an_empty_answer(student: ServedStudent) -> None:
    answer = ask(student, pd.DataFrame({"text": []}), all_scores=True)
    assert len(answer) == 0
    assert list(answer.columns)[:2] == ["label", "score"]


def test_an_empty_text_is_a_text(student: ServedStudent) -> None:
    assert len(ask(student, [""])) == 1


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, 7])
def test_a_row_without_text_is_refused_by_its_number(student: ServedStudent, missing: Any) -> None:
    table = pd.DataFrame({"text": pd.Series(["word1", missing, "word2", missing], dtype=object)})
    with pytest.raises(MlflowException, match=r"2 of 4 rows have no text .*: row 1, 3"):
        ask(student, table)


def test_batches_hold_every_text_once_and_keep_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_student, "BATCH_TOKENS", 24)
    lengths = [5, 3, 30, 8, 3, 8, 1]
    batches = list(batch_by_length(lengths, None))
    assert sorted(index for batch in batches for index in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 24
    assert len(batches) < 7


def test_softmax_survives_large_logits() -> None:
    assert softmax(np.array([[1e4, 1e4], [-1e4, 0.0]])).tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_the_file_stands_alone() -> None:
    """It is copied into the model: whatever else it imported would have to be installed there."""
    tree = ast.parse(Path(served_student.__file__).read_text(encoding="utf-8"))
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            roots.add(node.module.split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {
        "mlflow", "numpy", "onnxruntime", "pandas", "tokenizers",
    }  # fmt: skip

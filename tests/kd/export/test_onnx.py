"""The exported student does what the trained one does, and says so when it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tasks.kd.data.examples.prepared import Ids
from tasks.kd.documents.exported import Contract, ExportReport
from tasks.kd.errors import ExportError
from tasks.kd.export import onnx as export
from tasks.kd.export.int8 import write_int8
from tasks.kd.export.onnx import Papers, Trained, export_student, write_onnx, write_tokenizer
from tasks.kd.export.parity import require_agreement, require_parity
from tasks.kd.export.running import predict_onnx, predict_torch, run_session
from tasks.kd.recipe.sections import ExportStudent
from tasks.kd.tokens.encoding import encode, read_tokenizer
from tests.makers.documents import (
    FINGERPRINT,
    make_data_card,
    make_split_card,
    make_student_report,
    make_teacher_report,
)
from tests.makers.tiny import LABELS, MAX_LENGTH, tiny_model, tiny_texts, tiny_tokenizer

PAPERS = Papers(
    recipe="tiny",
    data_card=make_data_card(
        LABELS,
        splits={
            name: make_split_card(LABELS, examples=1234, unlabelled=unlabelled, tokens=5)
            for name, unlabelled in (("train", 1000), ("dev", 0), ("test", 0))
        },
    ),
    teacher_report=make_teacher_report(),
    student_report=make_student_report(),
    teacher_config={"model_type": "bert", "num_hidden_layers": 4, "hidden_size": 16},
    student_config={"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 16},
)


def settings(**changes: Any) -> ExportStudent:
    """A recipe's section."""
    given = {
        "serve": "float32",
        "max_logit_difference": 1e-4,
        "min_int8_agreement": 0.5,
        "parity_examples": 40,
    }
    return ExportStudent.model_validate(given | changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the student is exported to, once for all tests here."""
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def trained(folder: Path) -> Trained:
    """The student of these tests; none may change it."""
    return Trained(
        model=tiny_model(2),
        tokenizer=tiny_tokenizer(folder / "source" / "tokenizer.json"),
        labels=tuple(LABELS),
        max_length_tokens=MAX_LENGTH,
        pad_token_id=0,
        papers=PAPERS,
    )


@pytest.fixture(scope="module")
def examples(trained: Trained) -> list[Ids]:
    """Forty texts of all lengths, as token ids."""
    return encode(read_tokenizer(trained.tokenizer, MAX_LENGTH), tiny_texts(40))


@pytest.fixture(scope="module")
def report(trained: Trained, examples: list[Ids], folder: Path) -> ExportReport:
    """The report of the one export."""
    return export_student(trained, examples, params=settings(), out=folder)


@pytest.fixture(scope="module")
def exported(report: ExportReport, folder: Path) -> Path:
    """The float32 file."""
    assert report.serve == "model.onnx"
    return folder / "model.onnx"


def test_the_export_says_what_it_measured(report: ExportReport, folder: Path) -> None:
    assert report == ExportReport.read(folder)
    assert report.max_logit_difference < 1e-4
    assert report.parity_examples == 40
    assert report.int8_agreement > 0.8
    assert report.int8_agreement_suffices is True
    assert report.sizes == {
        name: (folder / name).stat().st_size for name in ("model.onnx", "model.int8.onnx")
    }
    assert report.sizes["model.int8.onnx"] < report.sizes["model.onnx"]


def test_a_server_finds_its_contract(exported: Path) -> None:
    assert Contract.read(exported.parent).as_json() == {
        "labels": LABELS,
        "max_length_tokens": MAX_LENGTH,
        "pad_token_id": 0,
        "serve": "model.onnx",
        "inputs": ["input_ids", "attention_mask"],
        "output": "logits",
    }
    graph = onnx.load(exported).graph
    assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
    assert [value.name for value in graph.output] == ["logits"]
    axes = [[axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in graph.input]
    assert axes == [["batch", "sequence"]] * 2


@pytest.mark.parametrize("length", [1, 2, 7, 32])
@pytest.mark.parametrize("alone", [True, False])
def test_any_batch_and_length_gives_the_logits_of_torch(
    trained: Trained, exported: Path, length: int, alone: bool
) -> None:
    random = np.random.default_rng(length)
    ids = [random.integers(4, 60, length).astype(np.int32) for _ in range(3)]
    found = predict_onnx(exported, ids, pad_token_id=0, alone=alone)
    np.testing.assert_allclose(found, predict_torch(trained.model, ids, pad_token_id=0), atol=1e-5)


def test_the_same_weights_give_the_same_bytes(
    trained: Trained, exported: Path, tmp_path: Path
) -> None:
    write_onnx(trained.model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()
    write_int8(tmp_path / "again.onnx", tmp_path / "again.int8.onnx")
    quantised = exported.with_name("model.int8.onnx").read_bytes()
    assert (tmp_path / "again.int8.onnx").read_bytes() == quantised


def test_the_files_tell_nothing_of_the_machine(exported: Path) -> None:
    for path in (exported, exported.with_name("model.int8.onnx")):
        content = path.read_bytes()
        for trace in (b"site-packages", b".py", str(Path.cwd()).encode()):
            assert trace not in content


def test_exporting_leaves_the_model_as_it_was(trained: Trained, exported: Path) -> None:
    assert exported.exists()
    left: Any = trained.model
    assert left.config._attn_implementation == tiny_model(1).config._attn_implementation
    assert not trained.model.training


def test_weights_that_changed_after_the_export_are_noticed(
    exported: Path, examples: list[Ids]
) -> None:
    other = tiny_model(2)
    with torch.no_grad():
        other.classifier.bias[1] += 0.01
    with pytest.raises(ExportError, match=r"at most 0\.001 .* over 40 examples, found 0\.01"):
        require_parity(other, exported, examples, pad_token_id=0, limit=1e-3)


def test_a_tolerance_of_nothing_is_not_met(
    trained: Trained, exported: Path, examples: list[Ids]
) -> None:
    with pytest.raises(ExportError, match="differ from the trained"):
        require_parity(trained.model, exported, examples, pad_token_id=0, limit=0.0)


def test_logits_that_are_not_numbers_are_no_parity(exported: Path, examples: list[Ids]) -> None:
    broken = tiny_model(2)
    torch.nn.init.constant_(broken.classifier.bias, float("nan"))
    with pytest.raises(ExportError, match="found nan"):
        require_parity(broken, exported, examples, pad_token_id=0, limit=1e9)


def test_a_mask_that_is_ignored_is_noticed(
    trained: Trained, exported: Path, examples: list[Ids], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_unmasked(session: Any, batch: Any) -> Any:
        batch.attention_mask.fill(1)
        return run_session(session, batch)

    monkeypatch.setattr("tasks.kd.export.parity.run_session", run_unmasked)
    with pytest.raises(ExportError):
        require_parity(trained.model, exported, examples, pad_token_id=0, limit=1e-3)


def test_int8_that_disagrees_is_recorded_but_not_served(
    trained: Trained,
    examples: list[Ids],
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def copy(_model: Any, path: Path) -> None:
        path.write_bytes(exported.read_bytes())

    monkeypatch.setattr(export, "write_onnx", copy)
    monkeypatch.setattr(export, "measure_agreement", lambda *_args, **_named: 0.4)
    report = export_student(trained, examples, params=settings(), out=tmp_path)
    assert report.int8_agreement_suffices is False
    with pytest.raises(ExportError, match=r"agreement of at least 0\.5"):
        export_student(trained, examples, params=settings(serve="int8"), out=tmp_path)


def test_agreement_at_the_limit_suffices() -> None:
    require_agreement(0.98, Path("model.int8.onnx"), limit=0.98)
    with pytest.raises(ExportError):
        require_agreement(0.9799, Path("model.int8.onnx"), limit=0.98)


def test_a_model_beyond_protobuf_needs_more_than_one_file(
    trained: Trained,
    exported: Path,
    examples: list[Ids],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export, "_PROTOBUF_LIMIT", 1000)
    with pytest.raises(ExportError, match="does not fit one ONNX file"):
        write_onnx(trained.model, tmp_path / "one.onnx")
    write_onnx(trained.model, tmp_path / "two.onnx", one_file=False)
    assert len(list(tmp_path.iterdir())) == 2
    found = predict_onnx(tmp_path / "two.onnx", examples, pad_token_id=0)
    expected = predict_onnx(exported, examples, pad_token_id=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_tokenizer_cuts_and_does_not_pad(trained: Trained, tmp_path: Path) -> None:
    loose = read_tokenizer(trained.tokenizer, 5)
    loose.enable_padding(length=50)
    loose.save(str(tmp_path / "padded.json"))
    write_tokenizer(tmp_path / "padded.json", tmp_path / "tokenizer.json", 8)
    ids = [
        len(one.ids)
        for one in read_tokenizer(tmp_path / "tokenizer.json", 8).encode_batch(
            ["word1", "word1 " * 30]
        )
    ]
    assert ids == [3, 8]


def test_the_model_card_quotes_what_it_was_given(exported: Path) -> None:
    card = (exported.parent / "model_card.md").read_text(encoding="utf-8")
    assert "# tiny\n" in card
    assert "2. `` <script>alert(1)</script> ``\n" in card
    assert "3. `` ship 'it' ``\n" in card
    assert "| train | 1,234, of them 1,000 of random tokens | 5 |\n| dev | 1,234 | 5 |\n" in card
    assert "| `model.onnx` |" in card
    for digest in ("a" * 64, "b" * 64, "d" * 64, "e" * 64, FINGERPRINT):
        assert digest in card
    assert "best constant answer (0.5000) it removes | 0.7000 | 0.8000 |" in card
    assert "one text at a time" not in card

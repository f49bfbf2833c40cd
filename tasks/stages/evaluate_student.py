"""Compare teacher and student on the test split: figures, predictions, report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from tasks.kd.data.examples.prepared import Split, read_split
from tasks.kd.digests import sha256_file
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.evaluation import (
    Cost,
    Latency,
    Metrics,
    ModelMetrics,
    Similarity,
    TorchMetrics,
)
from tasks.kd.documents.exported import Contract
from tasks.kd.documents.history import read_history
from tasks.kd.documents.predictions import Prediction, write_predictions
from tasks.kd.documents.training import StudentReport, TeacherReport
from tasks.kd.encoders.loading import load_classifier
from tasks.kd.encoders.shape import layers_of
from tasks.kd.evaluation.figures import (
    Answers,
    bin_confidence,
    compare_answers,
    compare_classes,
    count_confusions,
    count_right,
    read_answers,
)
from tasks.kd.evaluation.report import Contents, Mistake, count, interval, percent, write_report
from tasks.kd.evaluation.similarity import cka_matrix
from tasks.kd.evaluation.summary import write_curves, write_summary
from tasks.kd.export.onnx import write_onnx
from tasks.kd.export.parity import require_parity
from tasks.kd.export.running import (
    TextClassifier,
    hidden_states,
    predict_onnx,
    predict_torch,
    time_in_pairs,
)
from tasks.kd.teacher.ensemble import load_teacher
from tasks.kd.tokens.encoding import encode, read_tokenizer, require_same_tokens
from tasks.stages import Stage, run_stage

_MISTAKES = 8
_TEACHER_PARITY = 1e-2  # the teacher's ONNX file is only timed; this notices a broken one


@dataclass(frozen=True)
class Subjects:
    """The models that are compared, and the examples."""

    test: Split
    labels: tuple[str, ...]
    teacher: Any
    student: Any
    served: Path
    tokenizer: Path
    max_length_tokens: int
    pad_token_id: int


def main(stage: Stage) -> None:
    """Evaluate, write figures, predictions, curves and the report, and print the result."""
    subjects = _load(stage)
    answers, student_torch = _answer(stage, subjects)
    metrics = _measure(stage, subjects, answers, student_torch)
    metrics.write(stage.draft)
    write_predictions(stage.draft, _list_predictions(subjects, answers))
    write_summary(stage.draft, metrics)
    contents = _contents(stage, metrics, subjects, answers)
    write_curves(stage.draft, contents.student_history)
    write_report(contents, stage.draft)
    _show(metrics, stage.params.confidence)
    stage.log(f"report: {(stage.out / 'report.html').relative_to(stage.root)}")


def _measure(stage: Stage, subjects: Subjects, answers: Answers, student_torch: float) -> Metrics:
    """All figures of the answers and their cost.

    `student_torch` is the accuracy of the student before its export.
    """
    params = stage.params
    compared = compare_answers(
        answers,
        resamples=params.bootstrap_resamples,
        confidence=params.confidence,
        seed=params.seed,
    )
    stage.log(f"timing {min(params.latency_examples, len(subjects.test))} texts one by one")
    teacher, student = _measure_cost(stage, subjects)
    return Metrics(
        recipe=stage.recipe,
        evaluation_fingerprint=DataCard.read(stage.input("prepare_data")).test_sha256,
        labels=subjects.labels,
        examples=len(subjects.test),
        served_file=subjects.served.name,
        teacher=ModelMetrics(**compared.teacher.given, **teacher.given),
        student=ModelMetrics(**compared.student.given, **student.given),
        student_torch=TorchMetrics(accuracy=student_torch),
        retention=compared.retention,
        agreement=compared.agreement,
        right=count_right(answers),
        per_class=compare_classes(answers, subjects.labels),
        confusion=count_confusions(answers, len(subjects.labels)),
        similarity=_measure_similarity(stage, subjects),
    )


def _load(stage: Stage) -> Subjects:
    """The models and the test split.

    Raises DataError if the exported tokenizer gives other token ids than the prepared ones.
    """
    prepared, exported = stage.input("prepare_data"), stage.input("export_student")
    test = read_split(prepared / "test.arrow")
    contract = Contract.read(exported)
    tokenizer = exported / "tokenizer.json"
    ids = encode(read_tokenizer(tokenizer, contract.max_length_tokens), test.texts)
    require_same_tokens(ids, test.input_ids, where=tokenizer)
    return Subjects(
        test=test,
        labels=contract.labels,
        teacher=load_teacher(stage.input("train_teacher")),
        student=load_classifier(stage.input("train_student") / "model"),
        served=exported / contract.serve,
        tokenizer=tokenizer,
        max_length_tokens=contract.max_length_tokens,
        pad_token_id=contract.pad_token_id,
    )


def _answer(stage: Stage, subjects: Subjects) -> tuple[Answers, float]:
    """Both models' answers, and the accuracy of the student in torch.

    The student answers as it is served: an int8 file takes one text at a time.
    """
    ids, pad = subjects.test.input_ids, subjects.pad_token_id
    with stage.bar(3 * len(ids), "text") as bar:
        teacher = predict_torch(subjects.teacher, ids, pad_token_id=pad, report=bar.update)
        trained = predict_torch(subjects.student, ids, pad_token_id=pad, report=bar.update)
        served = predict_onnx(
            subjects.served,
            ids,
            pad_token_id=pad,
            alone="int8" in subjects.served.name,
            threads=stage.compute.threads or 0,
            report=bar.update,
        )
    classes = len(subjects.labels)
    outcomes = read_answers(teacher, classes), read_answers(served, classes)
    answers = Answers(subjects.test.labels, *outcomes)
    right = read_answers(trained, classes).classes == subjects.test.labels
    return answers, float(np.mean(right))


def _measure_cost(stage: Stage, subjects: Subjects) -> tuple[Cost, Cost]:
    """The cost of teacher and student; the teacher is exported temporarily to measure it."""
    folder = stage.work / "teacher"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    teacher = folder / "model.onnx"
    write_onnx(subjects.teacher, teacher, one_file=False)
    rows = _choose(subjects.test, stage.params.latency_examples, stage.params.seed)
    chosen = subjects.test.take(rows)
    require_parity(
        subjects.teacher,
        teacher,
        chosen.input_ids[:16],
        pad_token_id=subjects.pad_token_id,
        limit=_TEACHER_PARITY,
    )
    tokens = subjects.tokenizer, subjects.max_length_tokens
    pair = TextClassifier(teacher, *tokens), TextClassifier(subjects.served, *tokens)
    times = time_in_pairs(pair, chosen.texts)
    sizes = sum(path.stat().st_size for path in folder.iterdir()), subjects.served.stat().st_size
    return (
        _describe_cost(subjects.teacher, times[0], sizes[0]),
        _describe_cost(subjects.student, times[1], sizes[1]),
    )


def _describe_cost(model: Any, times_ms: npt.NDArray[np.float64], size_bytes: int) -> Cost:
    return Cost(
        latency_ms=Latency(
            p50=float(np.percentile(times_ms, 50)),
            p95=float(np.percentile(times_ms, 95)),
            mean=float(np.mean(times_ms)),
        ),
        size_bytes=size_bytes,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=len(layers_of(model)),
    )


def _measure_similarity(stage: Stage, subjects: Subjects) -> Similarity:
    """Linear CKA of every student layer and every teacher layer, embeddings (0) included."""
    rows = _choose(subjects.test, stage.params.similarity_examples, stage.params.seed + 1)
    ids = subjects.test.take(rows).input_ids
    states = [
        hidden_states(model, ids, len(layers_of(model)), pad_token_id=subjects.pad_token_id)
        for model in (subjects.student, subjects.teacher)
    ]
    return Similarity(
        layers_student=tuple(range(len(states[0]))),
        layers_teacher=tuple(range(len(states[1]))),
        cka=tuple(map(tuple, cka_matrix(*states))),
    )


def _choose(test: Split, examples: int, seed: int) -> Any:
    """Rows of a seeded choice of `examples` test texts, or all rows if there are fewer."""
    random = np.random.default_rng(seed)
    return np.sort(random.choice(len(test), min(examples, len(test)), replace=False))


def _list_predictions(subjects: Subjects, answers: Answers) -> Iterator[Prediction]:
    names = subjects.labels
    columns = answers.labels, answers.teacher.classes, answers.student.classes
    for example_id, *classes in zip(subjects.test.example_ids, *columns, strict=True):
        label, teacher, student = (names[c] for c in classes)
        yield Prediction(example_id, label, teacher, student)


def _contents(stage: Stage, metrics: Metrics, subjects: Subjects, answers: Answers) -> Contents:
    return Contents(
        metrics=metrics,
        data_card=DataCard.read(stage.input("prepare_data")),
        confidence=stage.params.confidence,
        teacher_bins=bin_confidence(answers.labels, answers.teacher),
        student_bins=bin_confidence(answers.labels, answers.student),
        teacher_history=read_history(stage.input("train_teacher")),
        student_history=read_history(stage.input("train_student")),
        mistakes=_find_mistakes(subjects, answers),
        lineage=_trace_lineage(stage, subjects),
    )


def _find_mistakes(subjects: Subjects, answers: Answers) -> list[Mistake]:
    """Texts that only the teacher gets right, the student's most confident mistakes first."""
    labels, teacher, student = answers.labels, answers.teacher, answers.student
    lost = np.flatnonzero((teacher.classes == labels) & (student.classes != labels))
    surest = lost[np.argsort(-student.confidence[lost], kind="stable")][:_MISTAKES]
    return [
        Mistake(
            text=subjects.test.texts[row],
            label=subjects.labels[labels[row]],
            answer=subjects.labels[student.classes[row]],
            student_score=float(student.confidence[row]),
            teacher_score=float(teacher.confidence[row]),
        )
        for row in surest
    ]


def _trace_lineage(stage: Stage, subjects: Subjects) -> list[tuple[str, str]]:
    """The student's origins. The git commit is left out, since the MLflow run has it."""
    data_card = DataCard.read(stage.input("prepare_data"))
    student = StudentReport.read(stage.input("train_student"))
    return [
        ("Recipe", stage.recipe),
        ("Prepared data", data_card.encoded_sha256),
        ("Test split (evaluation fingerprint)", data_card.test_sha256),
        ("Tokenizer", data_card.tokenizer_sha256),
        ("Teacher", TeacherReport.read(stage.input("train_teacher")).teacher_sha256),
        ("Teacher cache (fingerprint)", student.cache_fingerprint),
        ("Trained student", student.student_sha256),
        (f"Served file ({subjects.served.name})", sha256_file(subjects.served)),
    ]


def _show(metrics: Metrics, confidence: float) -> None:
    """Print the result as a table."""
    table = Table(title=f"{metrics.recipe}: {metrics.examples} test texts", title_justify="left")
    table.add_column("")
    for name in ("teacher", "student"):
        table.add_column(name, justify="right")
    both = metrics.teacher, metrics.student
    table.add_row("accuracy", *(percent(model.accuracy.value) for model in both))
    table.add_row("macro-F1", *(percent(model.macro_f1.value) for model in both))
    table.add_row("ECE", *(percent(model.ece.value) for model in both))
    table.add_row("latency p50", *(f"{model.latency_ms.p50:.2f} ms" for model in both))
    table.add_row("latency p95", *(f"{model.latency_ms.p95:.2f} ms" for model in both))
    table.add_row("size", *(f"{model.size_bytes / 1e6:.1f} MB" for model in both))
    table.add_row("parameters", *(count(model.parameters) for model in both))
    console = Console(stderr=True, highlight=False)
    console.print(table)
    console.print(
        f"retention {percent(metrics.retention.value)} "
        f"({percent(confidence, 0)} interval {interval(metrics.retention)}), "
        f"agreement {percent(metrics.agreement.value)}"
    )


if __name__ == "__main__":
    run_stage("evaluate_student", main)

"""Write the trained student as files to serve: ONNX in float32 and int8, tokenizer, model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.kd.data.examples.prepared import read_split
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.training import StudentReport, TeacherReport
from tasks.kd.encoders.files.folder import read_config
from tasks.kd.encoders.loading import load_classifier
from tasks.kd.errors import ExportError
from tasks.kd.export.onnx import Papers, Trained, export_student
from tasks.stages import Stage, run_stage


def main(stage: Stage) -> None:
    """Export, compare with torch on the dev split, and write the student's papers."""
    prepared, teacher = stage.input("prepare_data"), stage.input("train_teacher")
    student = stage.input("train_student")
    data_card = DataCard.read(prepared)
    model: Any = load_classifier(student / "model")
    _require_labels(model.config.id2label, data_card.labels, where=student / "model")
    trained = Trained(
        model=model,
        tokenizer=prepared / "tokenizer" / "tokenizer.json",
        labels=data_card.labels,
        max_length_tokens=data_card.max_length_tokens,
        pad_token_id=data_card.pad_token_id,
        papers=Papers(
            recipe=stage.recipe,
            data_card=data_card,
            teacher_report=TeacherReport.read(teacher),
            teacher_config=read_config(teacher / "model"),
            student_report=StudentReport.read(student),
            student_config=read_config(student / "model"),
        ),
    )
    stage.log("exporting to ONNX, float32 and int8")
    dev = read_split(prepared / "dev.arrow")
    report = export_student(trained, dev.input_ids, params=stage.params, out=stage.draft)
    for name, size in report.sizes.items():
        stage.log(f"{name}: {size / 1e6:.1f} MB{' (served)' if name == report.serve else ''}")
    stage.log(
        f"largest logit difference from torch {report.max_logit_difference:.2g}, "
        f"int8 agrees on {report.int8_agreement:.2%} of {report.parity_examples} examples"
    )


def _require_labels(id2label: dict[int, str], labels: tuple[str, ...], *, where: Path) -> None:
    """Raise ExportError unless the student's labels are the data's, in the same order."""
    names = tuple(id2label[i] for i in sorted(id2label))
    if names != labels:
        raise ExportError(
            "the student has other labels", where=where, expected=list(labels), found=list(names)
        )


if __name__ == "__main__":
    run_stage("export_student", main)

"""A label map that `stillhouse new` proposes for a tuned teacher whose labels are only numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tasks.kd.errors import DataError

if TYPE_CHECKING:
    from tasks.kd.data.tables import Rows
    from tasks.kd.teacher.standing import Counts

_TEXTS = 400  # training texts that the teacher answers
_CLEAR = 0.5  # the least lead with which the best order of labels is proposed
_COLUMN = 12  # width of a label in the table of evidence, in letters
_SHOWN = 12  # the most labels with which the table is shown


def note_label_map(document: Any, root: Path, rows: Rows | None) -> list[str]:
    """Write a comment beside `train_teacher.labels` that proposes names for a teacher's labels.

    This needs a teacher whose label names are only numbers, and training rows. The comment holds
    the map that the teacher's answers suggest, with its evidence. The field stays null until a
    person has read it, since a map fitted to answers always looks right. Returns the comment's
    lines; none if there is nothing to propose.
    """
    section = document["train_teacher"]
    section["labels"] = None
    teacher = document["fetch_sources"]["teacher"]
    folder = root / str(teacher.get("folder", ""))
    names = _generic_names(folder) if teacher["kind"] == "path" else None
    if names is None or rows is None or set(rows.labels) <= set(names):
        return []
    evidence = _propose(document, folder, names, _sample(rows))
    section.yaml_set_comment_before_after_key("labels", before="\n".join(evidence), indent=2)
    return evidence


def _generic_names(folder: Path) -> list[str] | None:
    """A tuned classifier's label names if they are only numbers, else None."""
    from tasks.kd.encoders.files.folder import check_model_folder
    from tasks.kd.encoders.files.label_names import are_generic, read_label_names
    from tasks.kd.encoders.files.weights import classifier_rows, read_headers

    try:
        fields = check_model_folder(folder)
        rows = classifier_rows(read_headers(folder))
        names = read_label_names(fields, folder / "config.json", rows)
    except DataError:  # the check of the whole recipe reports it if it matters
        return None
    return names if rows is not None and are_generic(names) else None


def _sample(rows: Rows) -> Rows:
    """At most 400 training rows, stratified by label."""
    from tasks.kd.data.tables import stratified

    if len(rows) <= _TEXTS:
        return rows
    chosen, _ = stratified(rows.labels, _TEXTS, seed=0)
    return rows.keep(chosen.tolist())


def _propose(document: Any, folder: Path, names: list[str], rows: Rows) -> list[str]:
    from tasks.kd.encoders.files.label_names import in_order

    labels = in_order(rows.labels)
    if len(labels) > len(names):
        return _open(
            names, labels, f"The data have {len(labels)} labels, the teacher {len(names)}."
        )
    click.echo(f"asks the teacher about {len(rows)} training texts (loads torch)", err=True)
    try:
        length = int(document["prepare_data"]["max_length_tokens"])
        answers = _ask(folder, rows, length)
    except DataError as error:
        return _open(names, labels, f"The teacher could not be asked: {error}")
    return _weigh(names, labels, rows, answers)


def _ask(folder: Path, rows: Rows, length: int) -> list[int]:
    """The teacher's answers, as numbers of labels."""
    from tasks.kd.encoders.loading import load_classifier
    from tasks.kd.export.running import predict_torch
    from tasks.kd.tokens.encoding import encode
    from tasks.kd.tokens.tokenizers import load_tokenizer

    teacher = load_tokenizer(folder)
    ids = encode(teacher.cut_at(min(length, teacher.positions or length)), rows.texts)
    logits = predict_torch(load_classifier(folder), ids, pad_token_id=teacher.pad_token_id)
    answers: list[int] = logits.argmax(-1).tolist()
    return answers


def _weigh(names: list[str], labels: list[str], rows: Rows, answers: Sequence[int]) -> list[str]:
    """The comment's lines for the names under which most answers are right."""
    import numpy as np

    from tasks.kd.encoders.files.label_names import paste
    from tasks.kd.teacher.standing import best_names, take_standing

    count = len(names)
    truth = [labels.index(label) for label in rows.labels]
    cells = np.bincount(
        np.asarray(truth) * count + np.asarray(answers), minlength=count * count
    ).reshape(count, count)
    # A label without a text in the sample keeps its own name.
    called = {
        answer: label for answer, label in enumerate(best_names(cells)) if label < len(labels)
    }
    known = [labels[called[i]] if i in called else name for i, name in enumerate(names)]
    standing = take_standing(rows.labels, [known[answer] for answer in answers], count)
    right = f"{standing.accuracy:.1%} of {standing.examples} training texts are right"
    if (
        not standing.is_above_chance
        or (standing.lead or 0) < _CLEAR
        or not _is_alone(cells, called)
    ):
        best = f"Named {paste(names, known)}, {right}: that settles nothing."
        return _open(names, labels, best)
    return [
        f"The teacher's labels have no names (id2label). So named, {right}; if that is what they",
        f"mean, `mode: given` needs it in place of null: {paste(names, known)}",
        *_draw(names, labels, cells),
    ]


def _is_alone(cells: Counts, called: dict[int, int]) -> bool:
    """Whether most texts of each label get the answer that is named after it."""
    return all(cells[label, answer] > cells[label].sum() / 2 for answer, label in called.items())


def _draw(names: list[str], labels: list[str], cells: Counts) -> list[str]:
    """A table of the answers by label, as lines; none for many labels."""
    if len(names) > _SHOWN:
        return []
    head = "".join(f"{name[:_COLUMN]:>{_COLUMN + 1}}" for name in names)
    rows = (
        f"{label[:_COLUMN]:<{_COLUMN}}" + "".join(f"{n:>{_COLUMN + 1}}" for n in cells[row])
        for row, label in enumerate(labels)
    )
    return [" " * _COLUMN + head, *rows]


def _open(names: list[str], labels: list[str], reason: str) -> list[str]:
    from tasks.kd.encoders.files.label_names import paste

    example = paste(names, [*labels, *names[len(labels) :]])
    return [
        "The teacher's labels have no names (id2label), and the data's have.",
        " ".join(reason.split()),
        f"With `mode: given`, say which is which, for example: labels: {example}",
    ]

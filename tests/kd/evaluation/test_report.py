"""The report: whole, self-contained, escaped, the same every time."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tasks.kd.documents.evaluation import Metrics, ModelMetrics
from tasks.kd.documents.history import Record
from tasks.kd.evaluation.figures import (
    Answers,
    Bin,
    bin_confidence,
    compare_answers,
    compare_classes,
    count_confusions,
    count_right,
    read_answers,
)
from tasks.kd.evaluation.plots import COLOURS, as_svg
from tasks.kd.evaluation.report import (
    Contents,
    Mistake,
    count,
    cut,
    difference,
    draw_plots,
    percent,
    render_report,
    summarise,
    write_report,
)
from tests.makers.documents import (
    change,
    make_cost,
    make_data_card,
    make_dev_record,
    make_latency,
    make_level_record,
    make_metrics,
    make_split_card,
    make_train_record,
)

ATTACK = "<script>alert('label')</script>"
NAMES = ["grain", ATTACK, "price $x$ & more"]
SECTIONS = [
    "comparison",
    "learning",
    "answers",
    "calibration",
    "mistakes",
    "data",
    "lineage",
    "definitions",
]

DATA_CARD = make_data_card(
    NAMES,
    max_length_tokens=64,
    splits={
        "train": make_split_card(
            NAMES,
            examples=1200,
            cut_fraction=0.125,
            tokens_for_99_percent=310,
            unknown_fraction=0.0123,
        )
    },
    dropped={"repeated": 3, "in_test_split": 0, "unreadable": 1},
    warnings=(f"12.5% of the texts are cut {ATTACK}",),
)


def make_answers(classes: int) -> Answers:
    """Answers of a good teacher and a fair student to 300 examples."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 300)
    logits = 3 * np.eye(classes)[labels]
    teacher, student = (logits + scale * random.normal(size=logits.shape) for scale in (1, 1.6))
    return Answers(labels, read_answers(teacher, classes), read_answers(student, classes))


def measure(answers: Answers, names: list[str]) -> Metrics:
    """The metrics of those answers; the student costs half the time and a third of the space."""
    compared = compare_answers(answers, resamples=200, confidence=0.95, seed=1)
    costs = {
        "teacher": make_cost(latency_ms=make_latency(4.0), size_bytes=90_000_000, layers=6),
        "student": make_cost(latency_ms=make_latency(2.0), size_bytes=30_000_000, layers=3),
    }
    return make_metrics(
        names,
        recipe="triage",
        examples=len(answers.labels),
        teacher=ModelMetrics(**compared.teacher.given, **costs["teacher"].given),
        student=ModelMetrics(**compared.student.given, **costs["student"].given),
        retention=compared.retention,
        agreement=compared.agreement,
        right=count_right(answers),
        per_class=compare_classes(answers, names),
        confusion=count_confusions(answers, len(names)),
    )


def make_two_phases() -> list[Record]:
    """Two phases of a training."""
    records: list[Record] = []
    for step in range(1, 41):
        phase = "imitate" if step <= 20 else "predict"
        levels = {"hidden.mse": make_level_record(1 / step)}
        if phase == "predict":
            levels["prediction.kl"] = make_level_record(0.3, 1.0)
        loss = 2 / step + 0.3
        records.append(make_train_record(step, phase=phase, loss=loss, levels=levels))
        if step % 10 == 0:
            records.append(make_dev_record(step, phase=phase, accuracy=step / 50, loss=1.0))
    return records


@pytest.fixture(scope="module")
def contents() -> Contents:
    """A report's contents with an attack in every text."""
    answers = make_answers(3)
    mistake = Mistake(f"{ATTACK} " + "word " * 200, ATTACK, "grain", 0.75, 0.99)
    return Contents(
        metrics=measure(answers, NAMES),
        data_card=DATA_CARD,
        confidence=0.95,
        teacher_bins=bin_confidence(answers.labels, answers.teacher),
        student_bins=bin_confidence(answers.labels, answers.student),
        teacher_history=make_two_phases(),
        student_history=make_two_phases(),
        mistakes=[mistake],
        lineage=[("Teacher", "3d1c" * 16), ("Recipe", ATTACK)],
    )


@pytest.fixture(scope="module")
def page(contents: Contents) -> str:
    """The rendered report."""
    return render_report(contents, draw_plots(contents))


class Outline(HTMLParser):
    """Tags that are open, ids of sections, what would be fetched."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.sections.append(given["id"] or "")
        self.fetched += [
            value or ""
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "data") and not (value or "").startswith("#")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    """The page, parsed."""
    found = Outline()
    found.feed(page)
    return found


def test_every_section_is_there_and_every_tag_is_closed(outline: Outline) -> None:
    assert outline.sections == SECTIONS
    assert outline.open == []


def test_the_page_needs_no_other_file(page: str, outline: Outline) -> None:
    assert outline.fetched == []
    assert outline.tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert "http:" not in page
    assert "https:" not in page
    assert "url(http" not in page
    assert "@import" not in page


def test_texts_and_labels_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert") >= 4  # mistake's text and label, class table, lineage


def test_it_says_the_result_in_one_sentence(contents: Contents, page: str) -> None:
    sentence = summarise(contents.metrics)
    retention = percent(contents.metrics.retention.value)
    expected = f"keeps {retention} of its teacher’s accuracy, in 33 % of the space"
    assert expected.replace(" %", "\u202f%") in sentence
    assert sentence.endswith("50\u202f% of the time.")
    assert f"<h1>{sentence}</h1>" in page


def test_figures_stand_beside_their_intervals(contents: Contents, page: str) -> None:
    for who in ("teacher", "student"):
        for name in ("accuracy", "lead", "macro_f1", "ece"):
            figure = getattr(getattr(contents.metrics, who), name)
            low, high = 100 * figure.low, 100 * figure.high
            shown = f"<td>{percent(figure.value)}<small>{low:.1f} to {high:.1f}</small></td>"
            assert shown in page


def test_each_plot_is_in_the_page_in_the_pages_colours(contents: Contents, page: str) -> None:
    plots = draw_plots(contents)
    assert set(plots) == {
        "learning-accuracy",
        "learning-weighted",
        "learning-hidden-mse",
        "learning-prediction-kl",
        "confusion-teacher",
        "confusion-student",
        "reliability",
        "similarity",
    }
    assert page.count('role="img"') == len(plots)
    for plot in plots.values():
        svg = as_svg(plot)
        assert svg.startswith('<svg viewBox="')
        assert not any(colour in svg for colour in COLOURS)
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
        assert "var(--" in svg


def test_every_colour_of_a_plot_is_defined_for_light_dark_and_paper(page: str) -> None:
    for name in COLOURS.values():
        assert page.count(f"--{name}: #") == 3


def test_the_same_contents_make_the_same_page(contents: Contents, page: str) -> None:
    assert render_report(contents, draw_plots(contents)) == page


def test_a_test_split_of_one_label_has_no_lead_to_show(contents: Contents) -> None:
    metrics = contents.metrics
    teacher, student = (change(who, lead=None) for who in (metrics.teacher, metrics.student))
    lacking = replace(contents, metrics=change(metrics, teacher=teacher, student=student))
    assert "Lead over the best" not in render_report(lacking, draw_plots(lacking))


def test_a_given_teacher_and_a_student_without_faults_still_make_a_page(
    contents: Contents,
) -> None:
    bare = replace(contents, teacher_history=[], student_history=[], mistakes=[])
    text = render_report(bare, draw_plots(bare))
    assert "There is no test text that the teacher gets right and the student wrong." in text


def test_sixty_classes_are_drawn_without_numbers(contents: Contents) -> None:
    names = [f"label {i}" for i in range(60)]
    answers = make_answers(60)
    many = replace(contents, metrics=measure(answers, names))
    svg = as_svg(draw_plots(many)["confusion-teacher"])
    assert "label 3" not in svg
    assert "label 59" in render_report(many, draw_plots(many))


def test_bins_without_examples_are_not_drawn(contents: Contents) -> None:
    empty = [Bin(0.0, 1.0, 0, 0.0, 0.0)]
    assert as_svg(draw_plots(replace(contents, teacher_bins=empty))["reliability"])


def test_report_and_pictures_are_written(contents: Contents, page: str, tmp_path: Path) -> None:
    write_report(contents, tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    pictures = list((tmp_path / "plots").iterdir())
    assert {path.stem for path in pictures} == set(draw_plots(contents))
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_numbers_are_written_for_people() -> None:
    assert percent(0.98765) == "98.8\u202f%"
    assert count(1234567) == "1\u202f234\u202f567"
    assert (difference(-0.0123), difference(0.02)) == ("−1.2", "+2.0")
    assert difference(-0.0001) == difference(0.0) == "0.0"
    assert cut("one  two\nthree", 100) == "one two three"
    assert cut("one two three", 9) == "one two\u00a0…"


def test_what_is_left_out_of_the_texts_is_told(page: str) -> None:
    section = re.search(r'<section id="data">.*?</section>', page, re.DOTALL)
    assert section
    text = re.sub(r"<[^>]+>", " ", section[0])
    assert re.search(r"Cut at 64 tokens", text)
    assert re.search(r"train\s+1\u202f200\s+12.5\u202f%\s+310\s+1.23\u202f%", text)
    assert "Left out: 3 repeated, 1 unreadable." in text
    assert "12.5% of the texts are cut" in text

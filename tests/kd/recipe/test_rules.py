"""Every rule between sections is broken once, and told once, with the line that it is of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.kd.errors import ParamsError
from tasks.kd.recipe.files import load_recipe
from tasks.kd.recipe.recipe import Recipe
from tasks.kd.recipe.rules import RULES, broken_rules

NEW = (
    "      kind: teacher_layers\n      layers: uniform\n",
    "      kind: random\n      embeddings: new\n",
)
PCA = (NEW[0], NEW[1].replace("new", "pca"))
NARROWED = (
    "      kind: teacher_layers\n",
    "      kind: width_reduction\n      method: pca\n      examples: null\n",
)
HEADS = ("    attention_heads: 12\n    inter", "    attention_heads: 6\n    inter")
WIDTH = ("    hidden_size: 384\n    att", "    hidden_size: 192\n    att")
LABELS = "        - {level: prediction, loss: labels, weight: 0.5}\n"
KL = "        - {level: prediction, loss: kl, temperature: 2.0, weight: 0.5}\n"
HIDDEN = (
    "        - {level: hidden, loss: mse, layer_map: uniform, standardise: true, projection: none, "
    "weight: 0.2}\n"
)
ATTENTION = "        - {level: attention, loss: mse, layer_map: last, heads: each, weight: 1.0}\n"
RELATION = (
    "        - {level: relation, loss: kl, layer_map: last, relations: [values], "
    "relation_heads: 5, weight: 1.0}\n"
)
BIG = "  more_teachers:\n    big: {kind: hub, id: a/b, revision: c}\n"
ONE_BIG = ("  more_teachers: {}\n", BIG)
STREAMS = "streams: [logits, hidden.0, hidden.2, hidden.4, hidden.6]"
LOOKED_INTO = [(LABELS, ATTENTION + LABELS), ("hidden.6]", "hidden.6, attention.6]")]
PROJECTED = ("projection: none", "projection: linear")
SECOND = (
    "      epochs: 2\n      learning_rate: 1.0e-4\n      optimizer: anew\n      trained_layers: "
)
EVERY = "streams: [logits, hidden.0, hidden.1, hidden.2, hidden.3, hidden.4, hidden.5, hidden.6]"
WEIGHTED = "ensemble:\n    logits: weighted\n    layers: main\n    weights: {main: 1.0}"
NUMBER = "Input should be a valid integer"
Changes = list[tuple[str, str]]
FaultsOf = Callable[[Changes], tuple[list[str], list[str]]]


@pytest.fixture
def faults_of(root: Path, tmp_path: Path) -> FaultsOf:
    """What is told of the quickstart with other lines: the lines of the file, and what is told."""
    text = (root / "params" / "quickstart.yaml").read_text()
    path = tmp_path / "params" / "changed.yaml"
    path.parent.mkdir()

    def read(changes: Changes) -> tuple[list[str], list[str]]:
        changed = text
        for old, new in changes:
            assert old in changed, old
            changed = changed.replace(old, new, 1)
        path.write_text(changed)
        with pytest.raises(ParamsError) as caught:
            load_recipe(path)
        told = [line.removeprefix(f"  {path}:") for line in str(caught.value).splitlines()[1:]]
        return changed.splitlines(), told

    return read


@pytest.mark.parametrize(
    ("changes", "field", "line", "said"),
    [
        (
            [("optimizer: anew", "optimizer: continued")],
            "train_student.phases.0.optimizer",
            "      optimizer: continued",
            "no optimizer to go on with",
        ),
        (
            [(LABELS + KL, ""), (STREAMS, STREAMS.replace("logits, ", ""))],
            "train_student.phases.1.levels",
            "      levels:",
            "judged by its predictions",
        ),
        (
            [
                NEW,
                (f"{SECOND}all", f"{SECOND}[1]"),
            ],
            "train_student.phases.1.trained_layers",
            "      trained_layers: [1]",
            "has a new head",
        ),
        (
            [("trained_layers: all", "trained_layers: [0, 9]")],
            "train_student.phases.0.trained_layers",
            "      trained_layers: [0, 9]",
            "9, but the student has layers 0 to 3",
        ),
        (
            [("trained_layers: all", "trained_layers: [head]")],
            "train_student.phases.0.trained_layers",
            "      trained_layers: [head]",
            "hidden trains head, but its levels reach",
        ),
        (
            [("random_texts: 0", "random_texts: 2"), (HIDDEN.replace("0.2", "1.0"), LABELS)],
            "prepare_data.random_texts",
            "  random_texts: 2",
            "only a phase without a prediction level reads them",
        ),
        (
            [("  more_teachers: {}\n", BIG.replace("big", "main"))],
            "fetch_sources.more_teachers.main",
            "    main: {",
            "main is the name of fetch_sources.teacher",
        ),
        ([ONE_BIG], "fetch_sources.more_teachers", "  more_teachers:", "several teachers need a"),
        (
            [("ensemble: null", "ensemble: {logits: mean, layers: main}")],
            "train_teacher.ensemble",
            "  ensemble: {",
            "needs fetch_sources.more_teachers",
        ),
        (
            [ONE_BIG, ("ensemble: null", "ensemble:\n    logits: mean\n    layers: small")],
            "train_teacher.ensemble.layers",
            "    layers: small",
            "no small; the teachers are big, main",
        ),
        (
            [
                ONE_BIG,
                ("ensemble: null", WEIGHTED),
            ],
            "train_teacher.ensemble.weights",
            "    weights: {main",
            "of main; the teachers are big, main",
        ),
        (
            [("layer_map: uniform", "layer_map: [[3, 7]]")],
            "train_student.phases.0.levels.0.layer_map",
            "        - {level: hidden, loss: mse, layer_map: [[3, 7]]",
            "out of range",
        ),
        (
            [("hidden.4, hidden.6]", "hidden.4, hidden.6, hidden.7]")],
            "cache_teacher.streams.5",
            "  streams:",
            "hidden.7, but the teacher has 6 layers",
        ),
        (
            [("hidden.4, hidden.6]", "hidden.4,\n    hidden.4, hidden.6]")],
            "cache_teacher.streams.4",
            "    hidden.4, hidden.6]",
            "names a stream twice: hidden.4",
        ),
        (
            [("hidden.4, hidden.6]", "hidden.6]")],
            "cache_teacher.streams",
            "  streams:",
            "lacks hidden.4, read by a level; the levels read [logits, hidden.0, hidden.2, hi",
        ),
        (
            [
                ("layer_map: uniform, standardise: true", "layer_map: mixture, standardise: false"),
                (STREAMS, EVERY),
                ("codec: float16", "codec: int8"),
            ],
            "cache_teacher.codec",
            "  codec: int8",
            "int8 moved its gradients by 9 %",
        ),
        (
            [(NEW[0], "      kind: checkpoint\n")],
            "train_student.student.initial.kind",
            "      kind: checkpoint",
            "needs its source in fetch_sources.student",
        ),
        (
            [("  student: null\n", "  student: {kind: hub, id: a/b, revision: c}\n")],
            "fetch_sources.student",
            "  student: {kind",
            "a model that initial.kind teacher_layers makes no use of",
        ),
        (
            [PCA, (WIDTH[0], WIDTH[1].replace("192", "768")), PROJECTED, PROJECTED],
            "train_student.student.initial.embeddings",
            "      embeddings: pca",
            "have no 768 principal components",
        ),
        (
            [("    intermediate_size: 1536\n", "    intermediate_size: 768\n")],
            "train_student.student.intermediate_size",
            "    intermediate_size: 768",
            "only at its intermediate_size 1536, found 768",
        ),
        (
            [NARROWED, ("    intermediate_size: 1536\n", "    intermediate_size: 3072\n")],
            "train_student.student.intermediate_size",
            "    intermediate_size: 3072",
            "3072 can't be reduced from the teacher's 1536",
        ),
        (
            [NARROWED, HEADS],
            "train_student.student.attention_heads",
            "    attention_heads: 6",
            "attention heads 64 wide can't be reduced",
        ),
        (
            [("      layers: uniform", "      layers: [1, 2, 9]")],
            "train_student.student.initial.layers",
            "      layers: [1, 2, 9]",
            "must be 3 numbers from 1 to 6",
        ),
        (
            [NEW, WIDTH, PROJECTED],
            "train_student.phases.1.levels.2.projection",
            HIDDEN.rstrip("\n"),
            "from width 192 to 384 needs `projection: linear`",
        ),
        (
            [NEW, HEADS, *LOOKED_INTO],
            "train_student.phases.1.levels.0.heads",
            ATTENTION.rstrip("\n"),
            "`each` needs equal attention_heads, the student has 6 and the teacher 12",
        ),
        (
            [NEW, ("    family: null", "    family: deberta-v2"), *LOOKED_INTO],
            "train_student.student.family",
            "    family: deberta-v2",
            "deberta-v2 has no attention",
        ),
        (
            [("compile: false", "compile: true"), *LOOKED_INTO],
            "compute.compile",
            "  compile: true",
            "what a compiled layer computes inside",
        ),
    ],
)
def test_a_broken_rule_is_told_once_at_its_own_line(
    faults_of: FaultsOf,
    changes: Changes,
    field: str,
    line: str,
    said: str,
) -> None:
    lines, (told,) = faults_of(changes)
    assert told.startswith(f"{told.partition(':')[0]}: {field}: "), told
    assert said in told
    number = int(told.partition(":")[0])
    assert lines[number - 1].startswith(line), lines[number - 1]


def test_widths_that_relation_heads_do_not_divide_are_both_told(
    faults_of: FaultsOf,
) -> None:
    streams = ("hidden.6]", "hidden.6, relation.6]")
    _, told = faults_of([NEW, WIDTH, PROJECTED, PROJECTED, (LABELS, RELATION + LABELS), streams])
    assert [re.sub(r"^\d+: ", "", line) for line in told] == [
        f"train_student.phases.1.levels.0.relation_heads: 5 does not divide the {whose}"
        for whose in ("student's width 192", "teacher's width 384")
    ]


def test_faults_of_fields_and_between_sections_are_told_together_in_order_of_lines(
    faults_of: FaultsOf,
) -> None:
    """But for rules about a section that has a wrong field: that they are not told is said."""
    lines, told = faults_of(
        [
            ("min_accuracy: 0.9", "min_accuracy: 9"),
            ("layer_map: uniform", "layer_map: [[9, 9]]"),
            ("hidden.4, hidden.6]", "hidden.6]"),
            ("      layers: uniform", "      layers: [1, 2, 9]"),
        ]
    )
    numbers = [int(line.partition(":")[0]) for line in told[:-1]]
    assert numbers == sorted(numbers)
    assert [lines[number - 1].split(":")[0].strip(" -{") for number in numbers] == [
        "streams",
        "layers",
        "level",
        "min_accuracy",
    ]
    assert told[-1] == "  Rules about gate are checked once these are mended."


def test_a_fault_that_two_levels_have_is_told_at_either(
    faults_of: FaultsOf,
) -> None:
    _, told = faults_of([NEW, ("    layers: 3\n", "    layers: 7\n")])
    assert [re.sub(r"^\d+: ", "", line) for line in told] == [
        f"train_student.phases.{phase}.levels.{level}.layer_map: a student of 7 layers can't be "
        "mapped onto 6"
        for phase, level in ((0, 0), (1, 2))
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            ("layer_map: uniform", "layer_map: foo"),
            "'random', or a valid array, or 'transport', 'nearest' or 'mixture', found \"foo\"",
        ),
        (("layer_map: uniform", "layer_map: [[1, x]]"), f'layer_map.0.1: {NUMBER}, found "x"'),
        (
            ("weight: 1.0", "weight: {schedule: linear, start: -1, end: 1}"),
            "weight.start: Input should be greater than or equal to 0, found -1",
        ),
        (
            ("trained_layers: all", "trained_layers: [a]"),
            f"trained_layers.0: {NUMBER}, or 'head', found \"a\"",
        ),
    ],
)
def test_a_field_of_several_kinds_is_refused_once(
    faults_of: FaultsOf, change: tuple[str, str], told: str
) -> None:
    _, (found, _) = faults_of([change])
    assert found.endswith(told), found


def test_the_names_of_a_rule_s_arguments_are_sections() -> None:
    for rule in RULES:
        assert set(inspect.signature(rule).parameters) <= set(Recipe.model_fields), rule


def test_a_rule_waits_for_the_sections_that_it_needs(root: Path) -> None:
    recipe = load_recipe(root / "params" / "quickstart.yaml")
    student = recipe.train_student.student.model_copy(update={"layers": 7})
    broken = recipe.train_student.model_copy(update={"student": student})
    assert list(broken_rules({"train_student": broken})) == []
    assert list(broken_rules({"train_student": broken, "train_teacher": recipe.train_teacher}))

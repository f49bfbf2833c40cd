"""What `stillhouse cache plan` does: what a recipe's levels read of its teacher, and its price.

From the recipe alone, so it works before there is a teacher or a text; once the data are prepared,
it knows totals too. A recipe whose only fault is its `streams` can be planned: this is what says
what they ought to be.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.kd.errors import ParamsError

if TYPE_CHECKING:
    from tasks.kd.cache.format.estimate import Estimate, Texts
    from tasks.kd.recipe.recipe import Recipe


@dataclass(frozen=True)
class Planned:
    """A recipe that is valid with the streams that it names, or else with those `read` by levels.

    `text` is its file with the streams that are read, None where it names just these.
    """

    path: Path
    recipe: Recipe
    read: tuple[str, ...]
    text: bytes | None

    @property
    def unread(self) -> list[str]:
        """Streams that the recipe names and no level reads."""
        return [s for s in self.recipe.cache_teacher.streams if s not in self.read]


def read_planned(root: Path, recipe: str) -> Planned:
    """The recipe of that name or path. Raises ParamsError for faults other than of its streams."""
    from tasks.kd.recipe.files import find_recipe, load_recipe
    from tasks.kd.recipe.phases import streams_read

    path = find_recipe(recipe, root)
    try:
        loaded = load_recipe(path)
    except ParamsError as error:
        text, read = _fit(path, error)
        return Planned(path, _parse(text, path, error), read, text)
    student = loaded.train_student
    read = streams_read(student.phases, student.student.layers, loaded.train_teacher.layers)
    same = set(read) == set(loaded.cache_teacher.streams)
    return Planned(path, loaded, read, None if same else _fit(path, None)[0])


def write_streams(planned: Planned) -> bool:
    """Write the streams that the levels read into the recipe's file; False if they stand there.

    Raises ParamsError where no level reads the teacher, as a recipe must name some stream.
    """
    from tasks.kd.recipe.document import write_document

    if planned.text is None:
        return False
    if not planned.read:
        raise ParamsError("no level of this recipe reads its teacher", where=planned.path)
    write_document(planned.path, planned.text)
    return True


def describe_plan(root: Path, planned: Planned) -> dict[str, Any]:
    """All figures, as JSON; bytes in total are None before the data are prepared."""
    from flows.care import kept_of
    from tasks.kd.cache.format.estimate import Teacher, estimate
    from tasks.kd.recipe.epochs import epochs_read

    recipe, name = planned.recipe, planned.path.stem
    params, teacher = recipe.cache_teacher, recipe.train_teacher
    artifacts = root / "artifacts" / name
    texts = read_texts(artifacts / "prepare_data")
    found = estimate(
        params.streams,
        params.recompute,
        params.codec,
        Teacher(
            teacher.layers, teacher.hidden_size, teacher.attention_heads, teacher.intermediate_size
        ),
        longest=recipe.prepare_data.max_length_tokens,
        texts=texts,
    )
    need, quota = found.sizes[params.codec].bytes, int(params.quota_gib * 2**30)
    free = _free_bytes(kept_of(root).store.folder)
    return {
        "recipe": name,
        "mode": params.mode,
        "measured": _measured(artifacts / "cache_teacher" / "manifest.json"),
        "streams": list(planned.read),
        "unread": planned.unread,
        "codec": params.codec,
        "recompute": params.recompute,
        "served": [asdict(one) for one in found.served],
        "codecs": _describe_sizes(found),
        "naive_bytes_per_token": found.naive_bytes_per_token,
        "tokens_per_example": found.tokens_per_example,
        "texts": asdict(texts) if texts is not None else None,
        "bytes": need,
        "quota_bytes": quota,
        "free_bytes": free,
        "fits": None if need is None else need <= min(quota, free),
        "recompute_share": found.recompute_share,
        "break_even_epochs": found.break_even if math.isfinite(found.break_even) else None,
        "epochs": epochs_read(recipe.train_student.phases, recipe.prepare_data.random_texts),
    }


def _describe_sizes(found: Estimate) -> dict[str, dict[str, float | int | None]]:
    return {
        codec: {
            "bytes_per_token": size.bytes_per_token,
            "bytes": size.bytes,
            "naive_ratio": found.naive_bytes_per_token / size.bytes_per_token
            if size.bytes_per_token
            else None,
        }
        for codec, size in found.sizes.items()
    }


def _fit(path: Path, error: ParamsError | None) -> tuple[bytes, tuple[str, ...]]:
    """The file's text with the streams that its levels read, and these. Raises the error given."""
    from flows.streams import fit_streams
    from tasks.kd.recipe.document import open_document

    try:
        document = open_document(path)
        read = fit_streams(document.data)
        return document.render(), read
    except (KeyError, TypeError, ValueError, ParamsError):  # other faults, which the error names
        if error is None:
            raise
        raise error from None


def _parse(text: bytes, path: Path, error: ParamsError) -> Recipe:
    """The recipe of a text. Raises the error given if it has other faults."""
    from tasks.kd.recipe.files import parse_recipe

    try:
        return parse_recipe(text.decode(), path)
    except ParamsError:
        raise error from None


def read_texts(prepared: Path) -> Texts | None:
    """What the training split of a `prepare_data` folder holds; None before it is there."""
    from tasks.kd.cache.format.estimate import Texts
    from tasks.kd.documents.data_card import DataCard

    if not (prepared / DataCard.FILE).is_file():
        return None
    card = DataCard.read(prepared)
    return Texts(card.splits.train.examples, card.splits.train.tokens, len(card.labels))


def _measured(manifest: Path) -> str | None:
    """Why the stage chose to run the teacher, if it did; a cache doesn't say what was measured."""
    from tasks.kd.cache.format.manifest import Live
    from tasks.kd.cache.format.parsing import read_document
    from tasks.kd.errors import CacheError

    try:
        document = read_document(manifest)
    except CacheError:  # `ls` and `verify` say so
        return None
    return document.why if isinstance(document, Live) else None


def _free_bytes(folder: Path) -> int:
    """On the disk where the store is, or will be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free

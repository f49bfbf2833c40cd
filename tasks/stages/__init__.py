"""The programs that dvc.yaml runs, and the parts they share: `run_stage` and `Stage`.

A stage reads its own section of the recipe and the outs of earlier stages. It works in
`.work/<stage>-<recipe>-<fingerprint>/`, so that a killed run finds its own work again, and never
that of other settings, inputs or code. As its last act it moves `out/` from there into place, if
settings, inputs and code have not changed, since DVC records them as they are after the stage. It
ends with 0, or with the error's exit code and a record for the flow in `.work/errors/`.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError

from tasks.kd.digests import Digests, replace_folder, sha256_json, write_json
from tasks.kd.errors import DataError, KDError, StageError
from tasks.kd.recipe.compute import Compute
from tasks.kd.recipe.epochs import epochs_read
from tasks.kd.recipe.files import inputs_of, load_recipe
from tasks.kd.recipe.recipe import Recipe

_CODE = Path(__file__).parents[1]
INPUTS: dict[str, tuple[str, ...]] = {
    "fetch_sources": (),
    "prepare_data": ("fetch_sources",),
    "train_teacher": ("fetch_sources", "prepare_data"),
    "cache_teacher": ("prepare_data", "train_teacher"),
    "train_student": ("fetch_sources", "prepare_data", "train_teacher", "cache_teacher"),
    "export_student": ("prepare_data", "train_teacher", "train_student"),
    "evaluate_student": (
        "prepare_data",
        "train_teacher",
        "train_student",
        "export_student",
    ),
}
# Fields that a stage reads of other sections than its own.
READS: dict[str, tuple[str, ...]] = {
    "prepare_data": ("train_teacher.mode", "train_teacher.labels"),
}


@dataclass(frozen=True)
class Stage:
    """A stage program's view of its run: its section, its folders, its log and progress bar."""

    name: str
    recipe: str
    params: Any
    compute: Compute
    root: Path
    work: Path
    epochs: float = 0  # of the student's training that read the teacher; no result depends on it
    reads: Mapping[str, Any] = field(default_factory=dict)  # the fields in `READS`, by name

    @property
    def target(self) -> str:
        """The stage's name in DVC."""
        return f"{self.name}@{self.recipe}"

    @property
    def redo(self) -> str:
        """The command that runs this stage alone again."""
        return f"dvc repro -s -f {self.target}"

    @property
    def out(self) -> Path:
        """The folder of the stage's only out."""
        return self.root / "artifacts" / self.recipe / self.name

    @property
    def draft(self) -> Path:
        """The folder that the stage writes, moved to `out` when it is done."""
        return self.work / "out"

    def input(self, stage: str) -> Path:
        """The out of an earlier stage. Raises DataError, with the mend, if it is missing."""
        if stage not in INPUTS[self.name]:
            raise AssertionError(f"{self.name} does not declare {stage} as an input")
        folder = self.root / "artifacts" / self.recipe / stage
        if not folder.is_dir():
            raise DataError(
                f"{self.name} needs what {stage} makes",
                where=folder,
                expected="a folder",
                found="nothing",
                mend=f"dvc repro {stage}@{self.recipe}",
            )
        return folder

    def log(self, message: str) -> None:
        """Print one line on standard error."""
        print(f"{self.name}: {message}", file=sys.stderr, flush=True)

    def bar(self, total: int, unit: str, *, done: int = 0, quiet: bool = False) -> Any:
        """A progress bar with an ETA, on standard error: `.update(n)`, `.set_postfix_str(s)`."""
        from tqdm import tqdm

        return tqdm(
            total=total,
            initial=done,
            unit=unit,
            unit_scale=total > 100_000,
            desc=self.name,
            mininterval=0.5,
            dynamic_ncols=True,
            leave=False,
            disable=quiet,
        )


@dataclass(frozen=True)
class _Origin:
    """All that decides a stage's out, each part under a readable name."""

    read: dict[str, Any]  # its section, earlier stages' outs, the recipe's local files
    code: dict[str, str]


def run_stage(name: str, main: Callable[[Stage], None]) -> NoReturn:
    """Run a stage program and exit; the recipe's path is the only argument."""
    if len(sys.argv) != 2:
        print(f"usage: python -m tasks.stages.{name} params/<recipe>.yaml", file=sys.stderr)
        sys.exit(2)
    _quieten()
    root, path = Path.cwd(), Path(sys.argv[1])
    record = root / ".work" / "errors" / f"{path.stem}.{name}.json"
    try:
        _run(name, main, root, path)
    except KDError as error:
        _leave(record, type(error).__name__, str(error), error.transient)
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except (OSError, SafetensorError) as error:
        file = getattr(error, "filename", None)
        message = f"the system refused: {getattr(error, 'strerror', None) or error}"
        message += f" ({file})" if file else ""
        _leave(record, "StageError", message, False)
        print(f"{name}: {message}", file=sys.stderr, flush=True)
        sys.exit(1)
    record.unlink(missing_ok=True)
    sys.exit(0)


def _run(name: str, main: Callable[[Stage], None], root: Path, path: Path) -> None:
    digests = Digests()
    recipe = load_recipe(path)
    origin = _read_origin(name, root, path, recipe, digests)
    fingerprint = sha256_json([origin.read, origin.code])[:16]
    work = root / ".work" / f"{name}-{path.stem}-{fingerprint}"
    rank = _rank(recipe.compute)
    if rank:
        work = work.with_name(f"{work.name}-{rank}")
    work.mkdir(parents=True, exist_ok=True)
    stage = Stage(
        name,
        path.stem,
        getattr(recipe, name),
        recipe.compute,
        root,
        work,
        epochs_read(recipe.train_student.phases, recipe.prepare_data.random_texts),
        _read_fields(name, recipe),
    )
    _set_threads(recipe.compute.threads)
    shutil.rmtree(stage.draft, ignore_errors=True)
    stage.draft.mkdir()
    started = time.monotonic()
    main(stage)
    if rank:
        shutil.rmtree(work)
        stage.log("done; the first process keeps the results")
        return
    now = _read_origin(name, root, path, load_recipe(path), digests)
    _require_same(stage, origin, now)
    replace_folder(stage.draft, stage.out)
    for done in work.parent.glob(
        f"{name}-{path.stem}-{16 * '[0-9a-f]'}"
    ):  # and what earlier settings left
        shutil.rmtree(done)
    stage.log(f"done in {time.monotonic() - started:.1f} s")


def _rank(compute: Compute) -> str:
    """A suffix for a training's processes other than the first; empty for the first.

    A cluster (RANK) or several machines start them; only the first keeps results.
    """
    rank, machine = int(os.environ.get("RANK", "0")), compute.machine_rank or 0
    return f"process{rank}" if rank else f"machine{machine}" if machine else ""


def _read_origin(name: str, root: Path, path: Path, recipe: Recipe, digests: Digests) -> _Origin:
    files = [f"artifacts/{path.stem}/{stage}" for stage in INPUTS[name]]
    if name == "fetch_sources":
        files += inputs_of(recipe).values()
    section = getattr(recipe, name).model_dump(mode="json")
    read = {each: digests.of(root / each) for each in files if (root / each).exists()}
    also = {f"{path}: {field}": value for field, value in _read_fields(name, recipe).items()}
    return _Origin({f"{path}: {name}": section, **also, **read}, digest_code(_CODE, digests))


def _read_fields(name: str, recipe: Recipe) -> dict[str, Any]:
    """The fields that a stage reads of other sections, by dotted name."""
    return {
        dotted: functools.reduce(getattr, dotted.split("."), recipe)
        for dotted in READS.get(name, ())
    }


def digest_code(folder: Path, digests: Digests) -> dict[str, str]:
    """Digests of a folder's Python files by path; a stage's work goes on only with equal code."""
    files = sorted(folder.rglob("*.py"))
    return {file.relative_to(folder.parent).as_posix(): digests.of(file) for file in files}


def _require_same(stage: Stage, before: _Origin, after: _Origin) -> None:
    """Raise StageError if settings, inputs or loaded code changed while the stage ran.

    DVC would record their present state as the out's origin. Code that was not loaded had no part.
    """
    changed, loaded = _find_changes(before.read, after.read), _list_loaded()
    changed += [file for file in _find_changes(before.code, after.code) if file in loaded]
    if changed:
        raise StageError(
            f"{', '.join(changed)} changed while the stage ran",
            where=stage.target,
            advice=f"Nothing is recorded. Its work is kept in {stage.work}: with the change undone "
            "it goes on from there, otherwise it starts anew.",
            mend=f"dvc repro {stage.target}",
        )


def _list_loaded() -> set[str]:
    """The Python files that this process has loaded, named as `digest_code` names them."""
    own = (_CODE.name, "__main__")
    modules = [vars(each) for name, each in sys.modules.items() if name.partition(".")[0] in own]
    files = [Path(each["__file__"]) for each in modules if each.get("__file__")]
    return {
        file.relative_to(_CODE.parent).as_posix() for file in files if file.is_relative_to(_CODE)
    }


def _find_changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [each for each in {**before, **after} if before.get(each) != after.get(each)]


def _set_threads(threads: int | None) -> None:
    """Set the threads of this process and its children; torch reads the variable only at import."""
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _quieten() -> None:
    """Switch off telemetry, and libraries' messages between our own lines."""
    os.environ.update(
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        TRANSFORMERS_VERBOSITY="error",
        TOKENIZERS_PARALLELISM="false",
        DO_NOT_TRACK="true",
    )
    if "transformers" in sys.modules:  # too late for its variables
        messages = sys.modules["transformers"].logging
        messages.set_verbosity_error()
        messages.disable_progress_bar()


def _leave(record: Path, kind: str, message: str, transient: bool) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, {"type": kind, "message": message, "transient": transient})

"""One recipe's work, as the flow and the command line see it; imports no engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.root import find_root
from tasks.kd.errors import ParamsError

if TYPE_CHECKING:
    from tasks.kd.documents.evaluation import Metrics
    from tasks.kd.gate.decision import Decision
    from tasks.kd.recipe.recipe import Recipe
    from tasks.registry import Produced


@dataclass(frozen=True)
class Job:
    """A valid recipe in its repository."""

    root: Path
    name: str
    recipe: Recipe

    @property
    def artifacts(self) -> Path:
        """The folder that holds one folder per stage."""
        return self.root / "artifacts" / self.name

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.artifacts / "evaluate_student" / "report.html"

    def read_metrics(self) -> Metrics:
        """Teacher against student, as `evaluate_student` measured them."""
        from tasks.kd.documents.evaluation import Metrics

        return Metrics.read(self.artifacts / "evaluate_student")

    def summarise(self, outcome: Outcome) -> dict[str, Any]:
        """An outcome with the figures behind it, as JSON."""
        metrics = self.read_metrics().as_json()
        return {**asdict(outcome), "metrics": metrics, "report": str(self.report)}


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the version, the decision on it, and what each stage that ran took (s)."""

    recipe: str
    version: str
    decision: Decision
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    overridden: bool = False  # champion on a person's word, whatever the gate says

    @property
    def promoted(self) -> bool:
        """True if the gate let the candidate through."""
        return self.decision.verdict == "promote"

    @property
    def ending(self) -> str:
        """Name of the flow's state."""
        return "Promoted" if self.promoted else "Refused"


def read_job(recipe: str, root: Path | None = None) -> Job:
    """The recipe of that name or path, validated in full, before anything is done.

    Raises ParamsError with every fault and its line, also if params/recipes.yaml does not list
    the recipe, or lists other files than its sources read.
    """
    from tasks.kd.recipe.files import check_inputs, find_recipe, load_recipe

    root = root or find_root()
    path = find_recipe(recipe, root)
    if path.parent.resolve() != (root / "params").resolve():
        raise ParamsError(
            "this recipe has no stages in dvc.yaml",
            where=path,
            expected=f"a file in {root / 'params'}",
            mend=f"stillhouse new <name> --from {recipe}",
        )
    loaded = load_recipe(path)
    check_inputs(root, path.stem, loaded)
    return Job(root, path.stem, loaded)


def describe(job: Job, flow_run_id: str | None = None) -> Produced:
    """The artifacts with their lineage, as the registry takes them."""
    from tasks.registry import Lineage, Produced
    from tasks.versioning.asking import git_state, out_hashes

    commit, dirty = git_state(job.root)
    lineage = Lineage(commit, dirty, out_hashes(job.root, job.name), flow_run_id)
    return Produced(job.name, job.recipe, job.root, job.artifacts, lineage)


def find_settled(job: Job) -> Outcome | None:
    """The outcome that stands, if nothing is left to do.

    That is: every stage is up to date, and the registry holds a decision on these very artifacts,
    which has been carried out.
    """
    from tasks.registry import open_registry
    from tasks.versioning.asking import plan

    if any(stage.reasons for stage in plan(job.root, job.name)):
        return None
    registry = open_registry(job.root)
    version = registry.find(describe(job))
    decision = registry.decided(version, job.recipe.gate) if version is not None else None
    if version is None or decision is None:
        return None
    is_champion = "champion" in version.aliases
    overridden = is_champion and version.tags.get("promoted_override") == "true"
    outcome = Outcome(job.name, version.uri, decision, overridden=overridden)
    carried_out = is_champion and "promoted_at" in version.tags
    return None if outcome.promoted and not carried_out else outcome


def estimate_cache(job: Job) -> int | None:
    """Bytes that the teacher cache takes in the recipe's codec; None before the data is prepared.

    More if the codec turns out to be too coarse for a stream, less by texts that are there twice;
    with `mode: auto`, if a cache is chosen; with `mode: live` none.
    """
    from flows.cache_plan import read_texts
    from tasks.kd.cache.format.estimate import stored_bytes
    from tasks.kd.recipe.streams import plan_streams

    params, texts = job.recipe.cache_teacher, read_texts(job.artifacts / "prepare_data")
    if texts is None:
        return None
    if params.mode == "live":
        return 0
    return stored_bytes(
        dict.fromkeys(plan_streams(params.streams, params.recompute).stored, params.codec),
        width=job.recipe.train_teacher.hidden_size,
        texts=texts,
    )

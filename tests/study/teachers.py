"""The teacher of each data set: the base encoder, tuned with the library's own loop, and measured.

Its streams are kept once, in the product's own format; all students read them from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from tasks.kd.cache.fingerprint import base_fields
from tasks.kd.cache.reader import CachedTargets, open_cache
from tasks.kd.cache.store import Store
from tasks.kd.cache.writer import Job, distinct, write_cache
from tasks.kd.data import Split
from tasks.kd.digests import read_json, replace_folder, sha256_file, sha256_json, write_json
from tasks.kd.encoders import load_classifier, model_sha256, new_classifier
from tasks.kd.levels import LabelsLevel
from tasks.kd.objective import Objective
from tasks.kd.params import Compute
from tasks.kd.phases import Phase
from tasks.kd.sinks import JsonLines
from tasks.kd.targets import NoTargets
from tasks.kd.training import Habits, Parts, predict, train
from tests.study.corpora import Corpus, base_folder, open_corpus
from tests.study.kept import kept_file
from tests.study.probes import bits, probe
from tests.study.settings import FOLDER, Study, decisive

Say = Callable[[str], None]


@dataclass(frozen=True)
class Teacher:
    """A tuned teacher; `report` holds its test answers and its probes."""

    folder: Path
    report: dict[str, Any]

    @property
    def sha256(self) -> str:
        """Of its weights and configuration."""
        return str(self.report["sha256"])

    def model(self) -> torch.nn.Module:
        """The classifier, in eval mode."""
        return load_classifier(self.folder)


def open_teacher(study: Study, name: str, say: Say, folder: Path = FOLDER) -> Teacher:
    """The teacher of a data set, tuned and measured if it was not, from the same settings."""
    corpus = open_corpus(study, name, folder)
    made_of = {
        "corpus": corpus.sha256,
        "base": model_sha256(base_folder(study, folder)),
        "teacher": study.data[name].teacher.model_dump(mode="json"),
        "optimizer": study.optimizer.model_dump(mode="json"),
        "version": 1,
    }
    out = folder / "teachers" / f"{name}-{sha256_json(decisive(made_of))[:12]}"
    if not (out / "report.json").exists():
        _tune(study, corpus, out, say, folder)
    report = read_json(out / "report.json")
    return Teacher(out, {**report, "probes": _probes(study, name, out, say, folder)})


def require_weights(teacher: Teacher, study: Study, corpus: Corpus, say: Say, folder: Path) -> None:
    """Tune a teacher again whose outcomes were kept without its weights.

    Raises SystemExit where that gives another one: its students could not be compared.
    """
    if (teacher.folder / "config.json").exists():
        return
    again = teacher.folder.with_name(f"{teacher.folder.name}-again")
    if not (again / "report.json").exists():
        _tune(study, corpus, again, say, folder)
    found = read_json(again / "report.json")["sha256"]
    if found != teacher.sha256:
        raise SystemExit(
            f"the teacher of {corpus.name} was {teacher.sha256[:12]} where its kept runs were done "
            f"and is {found[:12]} here (another processor or torch?): runs of both can't stand in "
            f"one table; to do all of them here, remove {kept_file(corpus.name)} and "
            f"{teacher.folder}"
        )
    for path in teacher.folder.glob("probe-*.json"):
        shutil.copy2(path, again)
    replace_folder(again, teacher.folder)


def habits(work: Path, compute: Compute) -> Habits:
    """Checkpoints and metrics in one folder; nobody watches."""

    def sinks(step: int) -> list[JsonLines]:
        return [JsonLines(work / "metrics.jsonl", resume_at=step)]

    return Habits(work, work, compute, sinks)


def cached(
    study: Study, teacher: Teacher, split: Split, streams: Sequence[str], folder: Path = FOLDER
) -> CachedTargets:
    """The teacher's streams of these texts, written if the store lacks them."""
    store = Store(folder / "store")
    keys, _ = distinct(split.input_ids)
    base = base_fields(
        teacher_sha256=teacher.sha256,
        tokenizer_sha256=sha256_file(base_folder(study, folder) / "tokenizer.json"),
        encoded_sha256=sha256(b"".join(sorted(keys))).hexdigest(),
    )
    params = study.cache.model_copy(update={"streams": tuple(streams)})
    job = Job(teacher.model(), split.input_ids, 0, params, base)
    manifest = write_cache(job, store, on_tokens=lambda _: None)
    return open_cache(
        manifest, store, expected=job.made_of, pad_id=0, mend="python -m tests.study", verify=False
    )


def _tune(study: Study, corpus: Corpus, out: Path, say: Say, folder: Path) -> None:
    """Train a teacher per rate; keep the one that is best on dev."""
    best: dict[str, Any] | None = None
    for rate in study.data[corpus.name].teacher.learning_rates:
        work = out.parent / "drafts" / out.name / f"{rate:g}"
        draft, report = _tune_at(study, corpus, work, folder, rate)
        say(f"teacher of {corpus.name} at {rate:g}: dev {report['dev_accuracy']:.4f}")
        if best is None or report["dev_accuracy"] > best["dev_accuracy"]:
            best = {**report, "draft": draft}
    assert best is not None
    draft = best.pop("draft")
    predicted = predict(load_classifier(draft), corpus.test, pad_id=corpus.pad_id, max_tokens=4096)
    right = predicted.argmax(1).numpy() == corpus.test.labels
    best |= {"accuracy": float(right.mean()), "correct": bits(right)}
    write_json(draft / "report.json", best)
    replace_folder(draft, out)
    shutil.rmtree(out.parent / "drafts" / out.name)
    say(f"teacher of {corpus.name}: test {best['accuracy']:.4f}")


def _tune_at(
    study: Study, corpus: Corpus, work: Path, folder: Path, rate: float
) -> tuple[Path, dict[str, Any]]:
    """A folder with the tuned model, and how its training ended; found if it is there."""
    done = work / "model"
    if (done / "training.json").exists():
        report: dict[str, Any] = read_json(done / "training.json")
        return done, report
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(study.optimizer.seed)
    teacher: Any = new_classifier(base_folder(study, folder), list(corpus.labels))
    phase = Phase(
        name="fine_tune",
        epochs=study.data[corpus.name].teacher.epochs,
        learning_rate=rate,
        optimizer="anew",
        trained_layers="all",
        balance_every=None,
        levels=(LabelsLevel(level="prediction", loss="labels", weight=1.0),),
    )
    parts = Parts(
        Objective(teacher, (phase,)), NoTargets(), corpus.train, corpus.dev, corpus.pad_id
    )
    ended = train(study.optimizer, parts, habits(work, study.compute))
    teacher.save_pretrained(done)
    report = {**vars(ended), "learning_rate": rate, "sha256": model_sha256(done)}
    write_json(done / "training.json", report)
    return done, report


def _probes(study: Study, name: str, out: Path, say: Say, folder: Path) -> dict[str, Any]:
    """The frozen teacher's probes, each kept beside it."""
    found: dict[str, Any] = {}
    for other in study.data[name].unseen:
        corpus = open_corpus(study, other, folder)
        made_of = {"probes": study.probes.model_dump(), "corpus": corpus.sha256}
        path = out / f"probe-{other}-{sha256_json(made_of)[:12]}.json"
        if not path.exists():
            write_json(path, probe(load_classifier(out), corpus, study.probes).as_json())
            say(f"teacher of {name}, probe on {other}: {read_json(path)['accuracy']:.4f}")
        found[other] = read_json(path)
    return found

"""The teachers of each data set: the base encoder, tuned with the library's own loop, and measured.

The same settings give other bits on another processor, and so another teacher: its folder is named
by both, and students of two teachers stand in two tables. A teacher's streams are kept once, in the
product's own format; all its students read them from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from study.corpora import Corpus, base_folder, open_corpus
from study.probes import bits, probe
from study.settings import FOLDER, Study, decisive
from tasks.kd.cache.format.fingerprint import base_fields
from tasks.kd.cache.reading.reader import CachedTargets, open_cache
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import CacheJob, distinct
from tasks.kd.cache.writing.writer import write_cache
from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.targets import NoTargets
from tasks.kd.digests import read_json, replace_folder, sha256_file, sha256_json, write_json
from tasks.kd.encoders.loading import load_classifier, model_sha256, new_classifier
from tasks.kd.recipe.compute import Compute
from tasks.kd.teacher.fine_tuning import FineTuning
from tasks.kd.training.course import Parts
from tasks.kd.training.dev import predict
from tasks.kd.training.loop import Habits, train
from tasks.kd.training.sinks import JsonLines

Say = Callable[[str], None]
CONFIG = "config.json"  # where it is, the weights are


@dataclass(frozen=True)
class Teacher:
    """A teacher tuned on a data set; `report` holds its test answers and its probes."""

    data: str
    folder: Path
    report: dict[str, Any]

    @property
    def name(self) -> str:
        """The beginning of its digest, for people."""
        return self.sha256[:8]

    @property
    def sha256(self) -> str:
        """Of its weights and configuration."""
        return str(self.report["sha256"])

    def model(self) -> torch.nn.Module:
        """The classifier, in eval mode."""
        return load_classifier(self.folder)


def known_teachers(study: Study, name: str, folder: Path = FOLDER) -> list[Teacher]:
    """All that were tuned on a data set with these settings and measured, here or elsewhere."""
    probes, named = _probe_files(study, name, folder), _settings_name(study, name, folder)
    found = sorted((folder / "teachers").glob(f"{named}-*/report.json"))
    return [
        _read(name, path.parent, probes)
        for path in found
        if all((path.parent / file).exists() for file in probes.values())
    ]


def teacher_here(study: Study, name: str, say: Say, folder: Path = FOLDER) -> Teacher:
    """One whose weights are here, tuned and measured if there is none."""
    probes, named = _probe_files(study, name, folder), _settings_name(study, name, folder)
    found = sorted((folder / "teachers").glob(f"{named}-*/{CONFIG}"))
    out = found[0].parent if found else _tune(study, name, named, say, folder)
    for other, file in probes.items():
        if not (out / file).exists():
            corpus = open_corpus(study, other, folder)
            measured = probe(load_classifier(out), corpus, study.probes)
            write_json(out / file, measured.as_json())
            say(f"teacher of {name}, probe on {other}: {measured.correct_N.mean():.4f}")
    return _read(name, out, probes)


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
    job = CacheJob(teacher.model(), split.input_ids, 0, base, params)
    manifest = write_cache(job, store, on_tokens=lambda _: None)
    return open_cache(
        manifest, store, expected=job.made_of, pad_id=0, mend="python -m study", verify=False
    )


def _settings_name(study: Study, name: str, folder: Path) -> str:
    """A name for all that decides a teacher, but the machine."""
    made_of = {
        "corpus": open_corpus(study, name, folder).sha256,
        "base": model_sha256(base_folder(study, folder)),
        "teacher": study.data[name].teacher.model_dump(mode="json"),
        "optimizer": study.optimizer.model_dump(mode="json"),
        "version": 1,
    }
    return f"{name}-{sha256_json(decisive(made_of))[:12]}"


def _tune(study: Study, name: str, named: str, say: Say, folder: Path) -> Path:
    """Train a teacher per rate; the folder of the one that is best on dev.

    Where that is one whose outcomes were kept without its weights, the weights join them.
    """
    corpus, drafts = open_corpus(study, name, folder), folder / "teachers" / "drafts" / named
    best: dict[str, Any] | None = None
    for rate in study.data[name].teacher.learning_rates:
        draft, report = _tune_at(study, corpus, drafts / f"{rate:g}", folder, rate)
        say(f"teacher of {name} at {rate:g}: dev {report['dev_accuracy']:.4f}")
        if best is None or report["dev_accuracy"] > best["dev_accuracy"]:
            best = {**report, "draft": draft}
    assert best is not None
    draft = best.pop("draft")
    predicted = predict(load_classifier(draft), corpus.test, pad_id=corpus.pad_id, max_tokens=4096)
    right = predicted.argmax(1).numpy() == corpus.test.labels
    best |= {"accuracy": float(right.mean()), "correct": bits(right)}
    write_json(draft / "report.json", best)
    out = folder / "teachers" / f"{named}-{best['sha256'][:12]}"
    for path in out.glob("*.json"):
        shutil.copy2(path, draft)
    replace_folder(draft, out)
    shutil.rmtree(drafts)
    say(f"teacher of {name}: test {best['accuracy']:.4f}")
    return out


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
    epochs = study.data[corpus.name].teacher.epochs
    tuning = FineTuning(teacher, epochs=epochs, learning_rate=rate)
    parts = Parts(tuning, NoTargets(), corpus.train, corpus.dev, corpus.pad_id)
    ended = train(study.optimizer, parts, habits(work, study.compute))
    teacher.save_pretrained(done)
    report = {**vars(ended), "learning_rate": rate, "sha256": model_sha256(done)}
    write_json(done / "training.json", report)
    return done, report


def _probe_files(study: Study, name: str, folder: Path) -> dict[str, str]:
    """For each unseen corpus the file that a teacher's probe is kept in."""
    found = {}
    for other in study.data[name].unseen:
        corpus = open_corpus(study, other, folder)
        made_of = {"probes": study.probes.model_dump(), "corpus": corpus.sha256}
        found[other] = f"probe-{other}-{sha256_json(made_of)[:12]}.json"
    return found


def _read(name: str, out: Path, probes: dict[str, str]) -> Teacher:
    told = {other: read_json(out / file) for other, file in probes.items()}
    return Teacher(name, out, {**read_json(out / "report.json"), "probes": told})

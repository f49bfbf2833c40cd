"""Measuring a job's streams, and keeping a stream's calibration beside its shards.

The calibration is written down when a stream is begun, so that whoever goes on with a killed
writer's work encodes with the same statistics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from tasks.kd.cache.format.codec import Codec, Statistics
from tasks.kd.cache.format.estimate import source_of
from tasks.kd.cache.format.manifest import Stream
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.calibration import Calibration, Sample
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.cache.writing.shards import commit_tensors
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.digests import read_json, sha256_file, sha256_json, write_json
from tasks.kd.recipe.streams import layer_of

STATISTICS, CALIBRATION = "statistics.safetensors", "calibration.json"


def too_coarse(
    job: CacheJob, computed: Mapping[str, float], kept: Mapping[str, Stream | Calibration]
) -> dict[str, str]:
    """Streams from which something is computed with more error than the recipe allows, and why.

    A stream that is kept in float32 is as exact as it can be.
    """
    bound, reasons = job.params.max_relative_error, {}
    for name, error in computed.items():
        source = source_of(name)
        if not error <= bound and source in kept and kept[source].codec != "float32":
            reasons[source] = (
                f"{source} is kept in float32: with {kept[source].codec}, {name}, which is "
                f"computed from it, would have a relative error of {error:.2g}"
            )
    return reasons


def read_statistics(store: Store, stream: Stream) -> Statistics | None:
    """A stream's statistics, by which int8 values are decoded; None for logits."""
    if stream.statistics is None:
        return None
    return statistics_in(store.path(stream, stream.statistics))


def statistics_in(path: Path) -> Statistics | None:
    """The statistics in a file; None if it is not there, as for logits."""
    if not path.exists():
        return None
    tensors = load_file(path)
    return Statistics(tensors["mean"], tensors["deviation"])


class Calibrator:
    """The teacher on a job's calibration texts, run only if something is to be measured."""

    def __init__(self, job: CacheJob, texts: Sequence[Ids]) -> None:
        self._job, self._texts = job, texts

    @cached_property
    def _sample(self) -> Sample:
        job, streams = self._job, self._job.plan.stored
        tokens = job.params.batch_tokens
        return Sample(job.teacher, self._texts, streams, pad_id=job.pad_id, batch_tokens=tokens)

    def forget(self) -> None:
        """Free the states: all is measured, and a writer needs the memory."""
        self.__dict__.pop("_sample", None)

    def calibrate(self, stream: str, codec: Codec) -> Calibration:
        """Measure a stream in that codec, or in float32 if the codec is too coarse."""
        return self._sample.calibrate(stream, codec, self._job.params.max_relative_error)

    def derived_errors(
        self, store: Store, streams: Mapping[str, Stream | Calibration]
    ) -> dict[str, float]:
        """Relative error of every computed stream, its inputs decoded as a reader will."""
        kept = {}
        for name, one in streams.items():
            statistics = (
                one.statistics if isinstance(one, Calibration) else read_statistics(store, one)
            )
            if statistics is not None:
                kept[layer_of(name)] = (one.codec, statistics)
        computed = self._job.plan.computed
        return self._sample.derived_errors(computed, kept) if computed else {}


def begin(folder: Path, calibration: Calibration) -> None:
    """Write down what a stream is encoded with, unless an earlier writer has."""
    if begun(folder) is not None:
        return
    for stale in (*folder.glob("shard-*"), folder / CALIBRATION, folder / STATISTICS):
        stale.unlink(missing_ok=True)  # encoded with statistics that are gone
    digest = None
    if calibration.statistics is not None:
        tensors = {
            "mean": calibration.statistics.mean_D,
            "deviation": calibration.statistics.deviation_D,
        }
        digest = commit_tensors(tensors, folder / STATISTICS).model_dump(mode="json")
    said = {name: value for name, value in vars(calibration).items() if name != "statistics"}
    said["statistics"] = digest
    write_json(folder / CALIBRATION, {"said": said, "sha256": sha256_json(said)})


def begun(folder: Path) -> Calibration | None:
    """The calibration of an earlier writer; None unless it and its statistics are whole."""
    try:
        document = read_json(folder / CALIBRATION)
        said = document["said"]
        if sha256_json(said) != document["sha256"]:
            return None
        digest = said.pop("statistics")
        if digest is not None and sha256_file(folder / STATISTICS) != digest["sha256"]:
            return None
        return Calibration(**said, statistics=statistics_in(folder / STATISTICS))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None

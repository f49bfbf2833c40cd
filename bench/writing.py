"""Writing a cache against the teacher's bare forward passes, and against a plain loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.caches import HIDDEN, Bench, job_of, settings_of
from bench.figures import Figure, Findings, Way, paragraphs, ratio, take_turns, turns
from bench.material import LONG_TOKENS, SHORT_TOKENS, Prepared
from tasks.kd.cache.format.codec import Codec
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing.job import CacheJob, distinct
from tasks.kd.cache.writing.writer import write_cache, write_share
from tasks.kd.data.examples.batching import split_by_tokens
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Ids

# R52 fills 4 shards at the recipe's 128 MiB; the sample is a seventh of it and fills as many.
SHARD_MIB = 16
PLAIN_BATCH = 32
_WARM_UP_TEXTS = 64
NOTES = """
Writing is `write_share`: forward passes with hooks, encoding, shards with their digests, all synced
to the disk, into a new store each round. The whole of `write_cache` also measures statistics and
codec errors on at most 256 texts beforehand, which weighs on a sample of this size much more than
on a data set.

The bare forward pass runs over the same distinct texts, sorted by length, in batches of as many
padded tokens, in eval and inference mode; nothing is captured or kept.

The plain loop runs over shuffled batches of {plain_batch}, each padded to its longest text, with
`output_hidden_states=True`, in eval and inference mode; it keeps nothing either. It is timed on a
random half of the texts, another one each round, and counted for all.
"""


def measure(bench: Bench) -> Findings:
    """Both lengths."""
    texts = bench.pick(800, 96)
    short, long = bench.material.short, bench.material.long
    runs = {
        SHORT_TOKENS: _Run(bench, short, texts, {"forward", "forward again", "writing"}),
        LONG_TOKENS: _Run(bench, long, texts, {"forward", "writing", "plain loop"}),
    }
    rounds = {SHORT_TOKENS: bench.pick(7, 1), LONG_TOKENS: bench.pick(5, 1)}
    bench.watch.expect(sum(turns(run.ways, rounds[most]) for most, run in runs.items()))
    figures: list[Figure] = []
    for most, run in runs.items():
        found = take_turns(run.ways, rounds[most], advance=bench.watch.advance)
        figures += _figures(f"at most {most} tokens", found, run.whole)
    params = runs[SHORT_TOKENS].job.params.model_dump(mode="json")
    return Findings(
        tuple(figures),
        {"texts": texts, "rounds": rounds, "plain_batch": PLAIN_BATCH, "cache_teacher": params},
        paragraphs(NOTES, plain_batch=PLAIN_BATCH),
    )


@dataclass
class _Run:
    """One length: its ways, each returning its seconds; round 0 takes a few texts only."""

    bench: Bench
    data: Prepared
    texts: int
    wanted: set[str]

    def __post_init__(self) -> None:
        material, split = self.bench.material, self.data.sample(self.texts)
        params = settings_of(material, HIDDEN, "float16", shard_mib=SHARD_MIB)
        self.job = job_of(material.teacher, self.data, split, params)
        _, self.sorted = distinct(self.job.input_ids)
        self.whole: list[float] = []
        ways: Mapping[str, Way] = {
            "forward": self.forward,
            "forward again": self.forward,
            "writing": self.write,
            "plain loop": self.plain,
        }
        self.ways = {name: way for name, way in ways.items() if name in self.wanted}

    def forward(self, number: int) -> float:
        """Bare passes over length-sorted batches."""
        texts = self.sorted if number else self.sorted[-_WARM_UP_TEXTS:]
        lengths = np.asarray([len(ids) for ids in texts], dtype=np.int64)
        most = self.job.params.batch_tokens
        batches = split_by_tokens(np.arange(len(texts)), lengths, max_tokens=most)
        return self._pass([[texts[i] for i in rows] for rows in batches], states=False)

    def plain(self, number: int) -> float:
        """What people write first, on a random half of the texts, for all of them."""
        count = len(self.sorted) // 2 if number else _WARM_UP_TEXTS
        order = np.random.default_rng(number).permutation(len(self.sorted))[:count]
        batches = [order[i : i + PLAIN_BATCH] for i in range(0, len(order), PLAIN_BATCH)]
        seconds = self._pass([[self.sorted[i] for i in rows] for rows in batches], states=True)
        return seconds * len(self.sorted) / len(order)

    def write(self, number: int) -> float:
        """Into a new store; the seconds of `write_share`, those of all in `whole`."""
        job = self.job
        if not number:
            few = job.input_ids[:_WARM_UP_TEXTS]
            job = CacheJob(job.teacher, few, job.pad_id, self.data.base_of(list(few)), job.params)
        spent: list[float] = []
        with TemporaryDirectory(dir=self.bench.folder, prefix="writing-") as folder:
            store = Store(Path(folder))
            began = time.perf_counter()
            write_cache(job, store, on_tokens=_unheard, spread=_timed(job, store, spent))
            if number:
                self.whole.append(time.perf_counter() - began)
        return spent[0]

    @torch.inference_mode()
    def _pass(self, batches: list[list[Ids]], *, states: bool) -> float:
        teacher = self.job.teacher.eval()
        began = time.perf_counter()
        for texts in batches:
            ids_BT, mask_BT = pad(texts, self.job.pad_id)
            teacher(input_ids=ids_BT, attention_mask=mask_BT.long(), output_hidden_states=states)
        return time.perf_counter() - began


def _timed(job: CacheJob, store: Store, spent: list[float]) -> Callable[[dict[str, Codec]], None]:
    """Does all shards in this process, as `write_cache` does by itself, and takes the time."""

    def spread(codecs: dict[str, Codec]) -> None:
        began = time.perf_counter()
        write_share(job, store, codecs, on_tokens=_unheard)
        spent.append(time.perf_counter() - began)

    return spread


def _figures(name: str, found: Mapping[str, list[float]], whole: list[float]) -> list[Figure]:
    forward, writing = found["forward"], found["writing"]
    figures = [
        ratio(f"writing ÷ forward, {name}", forward, writing, at_least=0.95),
        ratio(f"all of write_cache ÷ forward, {name}", forward, whole),
    ]
    if "forward again" in found:
        figures.append(ratio(f"noise: forward ÷ forward, {name}", found["forward again"], forward))
    if "plain loop" in found:
        plain = found["plain loop"]
        figures += [
            ratio(f"writing ÷ plain loop, {name}", plain, writing, at_least=1.5),
            ratio(f"all of write_cache ÷ plain loop, {name}", plain, whole),
        ]
    return figures + [
        Figure(f"seconds of {way}, {name}", tuple(s), "s") for way, s in found.items()
    ]


def _unheard(_tokens: int) -> None:
    """Progress that nobody follows."""

"""Bytes on disk of real caches, for each codec and each way of computing, against naive content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.caches import CODECS, HIDDEN, Bench, cache_of, job_of, settings_of
from bench.figures import Figure, Findings, paragraphs
from tasks.kd.cache.format.manifest import Manifest
from tasks.kd.cache.writing.job import distinct
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.encoders.shape import heads, width
from tasks.kd.recipe.streams import Recompute, naive_bytes

# Embeddings, and hidden states and attention at every mapped layer (arXiv:1909.10351).
TINYBERT = (
    "hidden.0",
    *("hidden.2", "hidden.4", "hidden.6"),
    *("attention.2", "attention.4", "attention.6"),
)
RECIPES: tuple[tuple[str, tuple[str, ...], Recompute], ...] = (
    ("TinyBERT, projections", TINYBERT, "projections"),
    ("TinyBERT, layers", TINYBERT, "layers"),
    ("logits and 4 hidden", HIDDEN, "projections"),
)
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Naive:
    """Bytes per token of float32 content: exact, and with every text taken to be of mean length."""

    exact: int
    of_mean_length: int


NOTES = """
Bytes per token are those of the shard files (values, scales, token ids, keys, offsets, headers) ÷
real tokens. The frozen pieces of the teacher (embeddings, layers) do not grow with the texts: they
are in the totals for R52 alone.

The naive float32 content per token is 4·D for each hidden stream and 4·H·n for each attention
stream, n the length of the token's own text: over all tokens, n is on average Σn²/Σn. `of mean
length` takes n to be the mean length of a text instead, which is less than what such a cache would
take. D is 384 and H is 12; logits, which are per text, are left out.

Totals for all R52 training texts: bytes per token as measured on the sample, times all tokens, plus
the pieces.
"""


def measure(bench: Bench) -> Findings:
    """All codecs and recipes on a sample; totals are for all training texts."""
    material, data = bench.material, bench.material.short
    split = data.sample(bench.pick(1000, 96))
    _, texts = distinct(split.input_ids)
    naive = {
        name: naive_content(streams, texts, width(material.teacher), heads(material.teacher))
        for name, streams, _ in RECIPES
    }
    _, every = distinct(data.train.input_ids)
    all_tokens = sum(len(ids) for ids in every)
    figures: list[Figure] = []
    bench.watch.expect(len(CODECS) * len(RECIPES))
    for name, streams, recompute in RECIPES:
        for codec in CODECS:
            params = settings_of(material, streams, codec, recompute)
            job = job_of(material.teacher, data, split, params)
            manifest = cache_of(job, bench.store).manifest
            figures += _figures(f"{name}, {codec}", manifest, naive[name], all_tokens)
            bench.watch.advance()
    mean = sum(len(ids) for ids in texts) / len(texts)
    return Findings(
        tuple(figures),
        {
            "texts": len(texts),
            "mean_tokens": mean,
            "all_texts": len(every),
            "all_tokens": all_tokens,
            "naive_bytes_per_token": {name: vars(found) for name, found in naive.items()},
        },
        paragraphs(NOTES),
    )


def naive_content(streams: Sequence[str], texts: Sequence[Ids], width: int, heads: int) -> Naive:
    """What these streams would take of these texts in float32, per token."""
    lengths = np.asarray([len(ids) for ids in texts], dtype=np.float64)
    own = float(np.square(lengths).sum() / lengths.sum())
    exact, of_mean = (
        naive_bytes(streams, width=width, heads=heads, tokens_per_example=length)
        for length in (own, float(lengths.mean()))
    )
    return Naive(exact, of_mean)


def stream_bytes_per_token(manifest: Manifest) -> float:
    """Of all shard files."""
    shards = (shard for stream in manifest.streams.values() for shard in stream.shards)
    return sum(shard.bytes for shard in shards) / manifest.tokens


def _figures(name: str, manifest: Manifest, naive: Naive, all_tokens: int) -> list[Figure]:
    per_token = stream_bytes_per_token(manifest)
    pieces = sum(file.bytes for piece in manifest.pieces.values() for file in piece.files)
    total = (per_token * all_tokens + pieces) / MEBIBYTE
    figures = [Figure(f"bytes per token, {name}", (per_token,), "B")]
    if "TinyBERT" in name:
        goal = 1 / 12 if name == "TinyBERT, layers, int8" else None
        share, of_mean = per_token / naive.exact, per_token / naive.of_mean_length
        figures.append(Figure(f"÷ naive float32, {name}", (share,), at_most=goal))
        if goal is not None:
            figures.append(Figure(f"÷ naive float32 of mean length, {name}", (of_mean,)))
    return [*figures, Figure(f"all R52 training texts, {name}", (total,), "MiB")]

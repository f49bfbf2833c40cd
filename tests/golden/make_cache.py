"""Write tests/golden/cache_v1 anew: `make goldens`. Tests only ever read it.

It is a store of format version 1, to be read forever: a change that makes this program's output
differ from what is committed is a change of the format, and needs another version number and
another folder beside this one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from tasks.kd.cache.format.fingerprint import base_fields
from tasks.kd.cache.format.manifest import MANIFEST
from tasks.kd.cache.reading.reader import open_cache
from tasks.kd.cache.store.store import Store
from tasks.kd.cache.writing import job as jobs
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.cache.writing.writer import write_cache
from tasks.kd.digests import sha256_file, write_json
from tests.makers.caches import make_params

CACHE = Path(__file__).with_name("cache_v1")
STORE, EXPECTED = CACHE / "store", CACHE / "expected.json"
TEXTS = [[2, 7, 3], [2], [2, 11, 5, 9, 3], [2, 8, 3], [2, 7, 3]]
# Recipes that share what they can: streams and codec.
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "int8": ("int8", ("logits", "hidden.0", "hidden.2", "attention.2", "relation.1")),
    "float16": ("float16", ("logits", "hidden.2")),
    "bfloat16": ("bfloat16", ("hidden.2",)),
    "float32": ("float32", ("hidden.1", "hidden.2", "logits")),
}


def make_teacher() -> Any:
    """Two layers, four channels, two heads; weights from a seed, rounded."""
    config = BertConfig(
        vocab_size=12,
        hidden_size=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=6,
        max_position_embeddings=6,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
    )
    teacher = BertForSequenceClassification(config).eval()
    random = np.random.default_rng(1)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            wide = 1.0 if "word_embeddings" in name else 0.4
            drawn = wide * random.normal(size=tuple(weight.shape)) + ("Norm.weight" in name)
            weight.copy_(torch.from_numpy(np.round(drawn, 2)))
    return teacher


def make_job(recipe: str) -> CacheJob:
    """What a recipe's cache is made of; its digests stand for no files."""
    codec, streams = RECIPES[recipe]
    params = make_params(codec=codec, streams=streams, max_relative_error=1.0, batch_tokens=16)
    base = base_fields(teacher_sha256="1" * 64, tokenizer_sha256="2" * 64, encoded_sha256="3" * 64)
    texts = [np.asarray(ids, dtype=np.int32) for ids in TEXTS]
    return CacheJob(make_teacher(), texts, 0, base, params)


def numbers(value: torch.Tensor) -> Any:
    """As JSON keeps them: the shortest decimal of each float32, which is that float32 again."""
    return [float(str(x)) for x in value.numpy().ravel()]


def main() -> None:
    """Write the store, and what must be read from it."""
    torch.set_num_threads(1)
    jobs.MEBIBYTE = 96  # two shards
    shutil.rmtree(CACHE, ignore_errors=True)
    served: dict[str, Any] = {}
    for recipe in RECIPES:
        job = make_job(recipe)
        manifest = write_cache(job, Store(STORE), on_tokens=lambda _: None)
        cached = open_cache(manifest, Store(STORE), expected=job.made_of, pad_id=0, mend="none")
        found = {str(ids): cached.fetch([np.asarray(ids, dtype=np.int32)]) for ids in TEXTS}
        values = {text: {s: numbers(x) for s, x in one.items()} for text, one in found.items()}
        served[recipe] = {"fingerprint": manifest.fingerprint, "streams": values}
    for path in sorted(STORE.rglob("*")):  # what readers ignore
        is_note = path.suffix == ".json" and path.name != MANIFEST
        if path.is_file() and (is_note or path.name in ("lock", "use")):
            path.unlink()
    files = {
        path.relative_to(STORE).as_posix(): sha256_file(path)
        for path in sorted(STORE.rglob("*"))
        if path.is_file()
    }
    write_json(EXPECTED, {"files": files, "served": served})
    print(f"wrote {CACHE.name}: {len(files)} files")


if __name__ == "__main__":
    main()

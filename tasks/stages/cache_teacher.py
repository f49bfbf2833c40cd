"""Run the teacher once over the training split and store the streams that the levels read."""

from __future__ import annotations

from tasks.kd.cache.care.users import register
from tasks.kd.cache.format.codec import Codec
from tasks.kd.cache.format.fingerprint import FORMAT_VERSION, fingerprint
from tasks.kd.cache.format.manifest import MANIFEST, Live, Manifest
from tasks.kd.cache.opening import audit_cache, read_inputs
from tasks.kd.cache.reading.reader import open_cache
from tasks.kd.cache.writing.choice import choose, measure
from tasks.kd.cache.writing.job import CacheJob
from tasks.kd.cache.writing.writer import write_cache, write_share
from tasks.kd.data.examples.prepared import read_split
from tasks.kd.documents.data_card import DataCard
from tasks.kd.encoders.shape import depth
from tasks.kd.errors import CacheCorruptError
from tasks.kd.processes.launch import run_processes
from tasks.kd.recipe.training import CacheTeacher
from tasks.kd.targets.targets import own_device
from tasks.kd.teacher.ensemble import load_teacher
from tasks.stages import Stage, run_stage
from tasks.stages.stored import store_of


def main(stage: Stage) -> None:
    """Fill the store; write manifest.json."""
    params: CacheTeacher = stage.params
    job = make_job(stage)
    if params.mode == "live":
        _write_live(stage, job, "the recipe says so")
        return
    if params.mode == "auto":
        mode, why = _measured(stage, job)
        stage.log(f"{mode}: {why}")  # not in the out, which two measurements would not share
        if mode == "live":
            _write_live(stage, job, "it was measured to be quicker than a cache")
            return
    manifest = _write(stage, job)
    cached = open_cache(
        manifest,
        store_of(stage),
        expected=job.made_of,
        pad_id=job.pad_id,
        mend=stage.redo,
        verify=False,  # the writer has just read every byte
    ).on(own_device())
    try:
        audited = audit_cache(cached, job, count=params.audit_examples)
    except CacheCorruptError as error:
        store_of(stage).discard(manifest)  # a whole but wrong cache would be used again
        raise CacheCorruptError(f"{error} The cache was discarded", mend=stage.redo) from None
    store_of(stage).share(manifest)
    manifest.write(stage.draft / MANIFEST)
    register(store_of(stage), stage.root, stage.recipe, manifest.fingerprints)
    _tell(stage, manifest, audited)


def make_job(stage: Stage) -> CacheJob:
    """A stage's job: the teacher on this process's device, the examples and the settings."""
    data, folder = stage.input("prepare_data"), stage.input("train_teacher")
    teacher = load_teacher(folder).to(own_device())
    texts = read_split(data / "train.arrow").input_ids
    inputs = read_inputs(folder, teacher, DataCard.read(data), texts)
    return CacheJob(**vars(inputs), params=stage.params)


def _write(stage: Stage, job: CacheJob) -> Manifest:
    store, processes = store_of(stage), stage.compute.processes
    register(
        store, stage.root, stage.recipe, job.entries
    )  # keeps others from clearing unfinished parts

    def warn(reason: str) -> None:
        stage.log(f"warning: {reason}")

    if processes == 1:
        with stage.bar(sum(len(ids) for ids in job.input_ids), "token") as bar:
            return write_cache(job, store, on_tokens=bar.update, on_coarse=warn)

    def spread(codecs: dict[str, Codec]) -> None:
        run_processes(share, stage, codecs, processes=processes)

    return write_cache(job, store, on_tokens=lambda _: None, spread=spread, on_coarse=warn)


def share(stage: Stage, codecs: dict[str, Codec]) -> None:
    """Write this process's share of the shards; runs in each of several processes."""
    import torch

    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    job = make_job(stage)
    total = sum(len(ids) for ids in job.input_ids) // world_size
    with stage.bar(total, "token", quiet=rank > 0) as bar:
        write_share(
            job,
            store_of(stage),
            codecs,
            on_tokens=bar.update,
            rank=rank,
            world_size=world_size,
        )


def _measured(stage: Stage, job: CacheJob) -> tuple[str, str]:
    return choose(
        measure(job, store_of(stage)),
        epochs=stage.epochs,
        quota_bytes=int(job.params.quota_gib * 2**30),
    )


def _write_live(stage: Stage, job: CacheJob, why: str) -> None:
    made_of = {**job.made_of, "mode": "live"}
    Live(
        format_version=FORMAT_VERSION,
        fingerprint=fingerprint(made_of),
        made_of=made_of,
        kind="live",
        why=why,
        layers=depth(job.teacher),
    ).write(stage.draft / MANIFEST)


def _tell(stage: Stage, manifest: Manifest, audited: int) -> None:
    for stream, codec in manifest.coarser.items():
        asked = manifest.made_of["codec"]
        stage.log(f"{stream} is kept in {codec}, {asked} is too coarse for it or its followers")
    worst = max(manifest.codec_errors.values(), default=0.0)
    stage.log(
        f"{manifest.examples} examples, {manifest.tokens} tokens, {manifest.bytes / 2**20:.0f} MiB "
        f"({manifest.bytes / max(1, manifest.tokens):.0f} bytes a token), relative error at most "
        f"{worst:.2g}; {audited} records audited"
    )


if __name__ == "__main__":
    run_stage("cache_teacher", main)

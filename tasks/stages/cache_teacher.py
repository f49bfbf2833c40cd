"""Run the teacher once over the training split and keep what the levels read."""

from __future__ import annotations

from tasks.kd.cache.audit import audit
from tasks.kd.cache.manifest import MANIFEST
from tasks.kd.cache.reader import open_cache
from tasks.kd.cache.writer import Job, fields_of, write_cache
from tasks.kd.data import read_data_card, read_split
from tasks.kd.digests import read_json
from tasks.kd.encoders import embeddings_of, load_classifier
from tasks.kd.params import CacheTeacher
from tasks.kd.targets import LiveTargets
from tasks.stages import Stage, run_stage


def main(stage: Stage) -> None:
    """Fill the store; write manifest.json."""
    params: CacheTeacher = stage.params
    data, teacher_folder = stage.input("prepare_data"), stage.input("train_teacher")
    card, split = read_data_card(data), read_split(data / "train.arrow")
    teacher = load_classifier(teacher_folder / "model")
    made_of = fields_of(
        teacher_sha256=read_json(teacher_folder / "report.json")["teacher_sha256"],
        tokenizer_sha256=card["tokenizer_sha256"],
        encoded_sha256=card["encoded_sha256"],
        params=params,
    )
    job = Job(teacher, split.input_ids, card["pad_token_id"], params, made_of)
    with stage.bar(card["splits"]["train"]["tokens"], "token") as bar:
        manifest = write_cache(job, stage.store, on_tokens=bar.update)
    for name, stream in manifest.streams.items():
        if name != "logits" and stream.codec != params.codec:
            stage.log(f"warning: {name} is kept in {stream.codec}, {params.codec} was too coarse")
    cached = open_cache(manifest, stage.store, expected=made_of, mend=stage.redo)
    if manifest.computed:
        cached.use_embeddings(embeddings_of(teacher), pad_id=card["pad_token_id"])
    live = LiveTargets(teacher, params.streams, pad_id=card["pad_token_id"])
    audited = audit(cached, live, split.input_ids, count=params.audit_examples)
    manifest.write(stage.draft / MANIFEST)
    stage.log(
        f"{manifest.examples} examples, {manifest.tokens} tokens, {manifest.bytes / 2**20:.0f} MiB "
        f"({manifest.bytes / manifest.tokens:.0f} bytes a token); {audited} records audited"
    )


if __name__ == "__main__":
    run_stage("cache_teacher", main)

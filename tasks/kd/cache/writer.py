"""Running the teacher once over all examples and keeping its streams.

Finished shards are kept and only the rest is computed when a killed writer starts again: the
work list is a function of the examples and the settings alone.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tasks.kd.batching import Rows, split_by_tokens
from tasks.kd.cache import codec as codecs
from tasks.kd.cache.fingerprint import FORMAT_VERSION, example_key, fingerprint
from tasks.kd.cache.manifest import MANIFEST, Manifest, Shard, Stream, read_manifest, verify_files
from tasks.kd.data import Ids
from tasks.kd.digests import commit_file, read_json, sha256_file, write_json
from tasks.kd.encoders import embeddings_of
from tasks.kd.errors import (
    CacheCorruptError,
    CacheIncompleteError,
    CacheQuotaError,
    NonFiniteLossError,
)
from tasks.kd.params import CacheTeacher
from tasks.kd.targets import hidden_layers, pad, run_teacher

SLICES = "slices.safetensors"
MEBIBYTE = 2**20
_CALIBRATION_EXAMPLES = 64


@dataclass(frozen=True)
class Job:
    """All that decides a cache's content: `made_of` is what its fingerprint is taken over."""

    teacher: torch.nn.Module
    input_ids: Sequence[Ids]
    pad_id: int
    params: CacheTeacher
    made_of: dict[str, Any]

    @property
    def computed(self) -> tuple[str, ...]:
        """Streams that are recomputed from slices instead of stored."""
        return tuple(s for s in self.params.streams if s == "hidden.0")

    @property
    def stored(self) -> tuple[str, ...]:
        """Streams that are stored."""
        return tuple(s for s in self.params.streams if s != "hidden.0")


def fields_of(
    *, teacher_sha256: str, tokenizer_sha256: str, encoded_sha256: str, params: CacheTeacher
) -> dict[str, Any]:
    """The fields of a cache's fingerprint. What only moves work about (shards, batches) is not."""
    return {
        "format_version": FORMAT_VERSION,
        "teacher_sha256": teacher_sha256,
        "tokenizer_sha256": tokenizer_sha256,
        "encoded_sha256": encoded_sha256,
        "streams": sorted(params.streams),
        "codec": params.codec,
        "max_relative_error": params.max_relative_error,
        "numerics": {"dtype": "float32", "attention": "sdpa"},
    }


def write_cache(job: Job, store: Path, *, on_tokens: Callable[[int], None]) -> Manifest:
    """Make the cache, or find it made. One writer at a time; a second waits and finds it done.

    `on_tokens` is called with the number of real tokens of each part that is finished. Raises
    CacheQuotaError before the first byte if it would not fit, NonFiniteLossError for a teacher
    whose states are not finite.
    """
    folder = store / fingerprint(job.made_of)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_writer(folder):
        if (found := _finished(folder)) is not None:
            return found
        job.teacher.eval()
        keys, unique = _unique(job.input_ids)
        streams = _calibrate(job, unique)
        require_space(job, unique, streams, folder)
        shards = []
        for number, rows in enumerate(_work_list(unique, job, streams)):
            shards.append(_shard(folder, number, rows, (job, unique, keys, streams)))
            on_tokens(shards[-1].tokens)
        for leftover in set(folder.glob("shard-*")) - _files_of(folder, shards):
            leftover.unlink()
        slices = _write_slices(job, folder, shards)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            fingerprint=folder.name,
            made_of=job.made_of,
            streams=streams,
            computed=job.computed,
            examples=len(unique),
            tokens=sum(shard.tokens for shard in shards),
            bytes=sum(shard.bytes for shard in shards) + slices.bytes,
            shards=tuple(shards),
            slices=slices,
        )
        manifest.write(folder / MANIFEST)
        return manifest


def bytes_per_token(streams: dict[str, Stream]) -> int:
    """Stored bytes per real token: the hidden streams and the token id."""
    return 4 + sum(
        stream.width * codecs.DTYPES[stream.codec].itemsize
        for name, stream in streams.items()
        if name != "logits"
    )


def _bytes_per_example(streams: dict[str, Stream]) -> int:
    """Key, offset and logits."""
    return 24 + (4 * streams["logits"].width if "logits" in streams else 0)


def require_space(
    job: Job, unique: Sequence[Ids], streams: dict[str, Stream], folder: Path
) -> None:
    """Raise CacheQuotaError unless the estimate fits the quota and the free disk."""
    tokens = sum(len(ids) for ids in unique)
    need = tokens * bytes_per_token(streams) + len(unique) * _bytes_per_example(streams)
    written = sum(path.stat().st_size for path in folder.glob("shard-*.safetensors"))
    quota, free = int(job.params.quota_gib * 2**30), shutil.disk_usage(folder).free
    if need > quota:
        raise CacheQuotaError(
            "the teacher cache would pass its quota",
            where="cache_teacher.quota_gib",
            expected=f"at most {quota / 2**30:.2f} GiB",
            found=f"an estimate of {need / 2**30:.2f} GiB for {tokens} tokens",
            advice="Raise the quota, keep fewer streams, or choose a smaller codec.",
        )
    if need - written > free:
        raise CacheQuotaError(
            "the disk is too full for the teacher cache",
            where=folder,
            expected=f"{(need - written) / 2**30:.2f} GiB free",
            found=f"{free / 2**30:.2f} GiB",
            advice="Make room, or set STILLHOUSE_STORE to a folder on another disk.",
        )


def _finished(folder: Path) -> Manifest | None:
    """The cache that stands there whole; a damaged one loses its manifest, so that it is mended."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(folder / MANIFEST)
        verify_files(manifest, folder)
    except (CacheCorruptError, CacheIncompleteError):
        (folder / MANIFEST).unlink()
        return None
    return manifest


def _files_of(folder: Path, shards: Sequence[Shard]) -> set[Path]:
    """The shards and their notes; others are of a run with another shard size."""
    names = {folder / shard.name for shard in shards}
    return names | {path.with_suffix(".json") for path in names}


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unique(input_ids: Sequence[Ids]) -> tuple[list[bytes], list[Ids]]:
    """Each distinct text once, sorted by length and key."""
    found = {example_key(ids.astype("<i4").tobytes()): ids for ids in input_ids}
    order = sorted(found, key=lambda key: (len(found[key]), key))
    return order, [found[key] for key in order]


def _calibrate(job: Job, unique: Sequence[Ids]) -> dict[str, Stream]:
    """Codec and measured error per stored stream, on examples spread over all lengths."""
    rows = np.unique(np.linspace(0, len(unique) - 1, _CALIBRATION_EXAMPLES).astype(np.int64))
    states: dict[str, list[torch.Tensor]] = {name: [] for name in job.stored}
    for row in rows:
        for name, value in _run(job, [unique[row]]).items():
            states[name].append(value)
    streams = {}
    for name, parts in states.items():
        together = torch.cat(parts)
        wanted: codecs.Codec = "float32" if name == "logits" else job.params.codec
        kept, error = codecs.choose(together, wanted, job.params.max_relative_error)
        streams[name] = Stream(codec=kept, relative_error=error, width=together.shape[-1])
    return streams


def _run(job: Job, examples: Sequence[Ids]) -> dict[str, torch.Tensor]:
    """Stored streams of a batch, padding dropped: logits [B, C], hidden [tokens, D].

    Raises NonFiniteLossError, naming the stream, if the teacher gives NaN or infinity.
    """
    ids_BT, mask_BT = pad(examples, job.pad_id)
    streams = run_teacher(job.teacher, ids_BT, mask_BT, hidden_layers(job.stored))
    kept = {}
    for name in job.stored:
        value = streams[name] if name == "logits" else streams[name][mask_BT]
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteLossError(
                f"the teacher's {name} holds NaN or infinity",
                where=f"a text of {len(examples[0])} tokens that begins {examples[0][:8].tolist()}",
                advice="Its weights or its training are at fault; nothing was kept of this shard.",
            )
        kept[name] = value
    return kept


def _work_list(unique: Sequence[Ids], job: Job, streams: dict[str, Stream]) -> list[Rows]:
    """The rows of each shard: consecutive, of about the recipe's size."""
    lengths = np.asarray([len(ids) for ids in unique], dtype=np.int64)
    tokens_per_shard = max(1, job.params.shard_mib * MEBIBYTE // bytes_per_token(streams))
    ends = np.searchsorted(
        np.cumsum(lengths), np.arange(1, lengths.sum() // tokens_per_shard + 1) * tokens_per_shard
    )
    cuts = np.unique(np.clip(ends + 1, 0, len(unique)))
    return [part for part in np.split(np.arange(len(unique)), cuts) if len(part)]


def _shard(
    folder: Path,
    number: int,
    rows: Rows,
    content: tuple[Job, Sequence[Ids], Sequence[bytes], dict[str, Stream]],
) -> Shard:
    """Write one shard, or find it whole from an earlier run."""
    name = f"shard-{number:05d}.safetensors"
    path, note = folder / name, folder / f"shard-{number:05d}.json"
    if path.exists() and note.exists():
        shard = Shard.model_validate(read_json(note))
        whole = path.stat().st_size == shard.bytes and sha256_file(path) == shard.sha256
        if whole and _keys_in(path) == b"".join(content[2][row] for row in rows):
            return shard
    tensors = _compute(rows, content)
    shard = _commit(tensors, path)
    write_json(note, shard.model_dump(mode="json"))
    return shard


def _keys_in(path: Path) -> bytes:
    """The keys of a shard's records; they change with the recipe's shard size."""
    with safe_open(path, framework="pt") as file:
        return bytes(file.get_tensor("keys").numpy().tobytes())


def _compute(
    rows: Rows, content: tuple[Job, Sequence[Ids], Sequence[bytes], dict[str, Stream]]
) -> dict[str, torch.Tensor]:
    """A shard's tensors, as FORMAT.md says."""
    job, unique, keys, streams = content
    lengths = np.asarray([len(unique[row]) for row in rows], dtype=np.int64)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in streams}
    pieces = split_by_tokens(np.arange(len(rows)), lengths, max_tokens=job.params.batch_tokens)
    for piece in pieces:
        for name, value in _run(job, [unique[rows[i]] for i in piece]).items():
            parts[name].append(codecs.encode(value, streams[name].codec))  # type: ignore[arg-type]
    tensors = {name: torch.cat(part) for name, part in parts.items()}
    for name in [name for name in tensors if name != "logits"]:
        tensors[f"sum.{name}"], tensors[f"square.{name}"] = _sums(name, parts[name])
    raw = b"".join(keys[row] for row in rows)
    tensors["keys"] = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, 16)
    tensors["offsets"] = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    tensors["input_ids"] = torch.from_numpy(
        np.concatenate([unique[row] for row in rows]).astype(np.int32)
    )
    return tensors


def _sums(name: str, encoded: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over tokens of the decoded states and of their squares, float64 [D].

    Raises NonFiniteLossError if a value overflowed its codec.
    """
    total, square = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for part in encoded:
        decoded = codecs.decode(part).double()
        total, square = total + decoded.sum(0), square + decoded.square().sum(0)
    if not bool(torch.isfinite(total).all()):
        raise NonFiniteLossError(
            f"{name} has values that overflow {encoded[0].dtype}",
            where="cache_teacher.codec",
            advice="Set it to bfloat16 or float32.",
        )
    return total, square


def _write_slices(job: Job, folder: Path, shards: Sequence[Shard]) -> Shard:
    """Channel means and deviations, and the embedding module where layer 0 is wanted."""
    tensors: dict[str, torch.Tensor] = {}
    tokens = sum(shard.tokens for shard in shards)
    for layer in hidden_layers(job.stored):
        mean, square = _moments(folder, shards, layer)
        mean, square = mean / tokens, square / tokens
        tensors[f"mean.hidden.{layer}"] = mean.float()
        tensors[f"deviation.hidden.{layer}"] = _deviation(mean, square)
    if job.computed:
        embeddings = embeddings_of(job.teacher)
        for name, value in embeddings.state_dict().items():
            tensors[f"embeddings.{name}"] = value
        mean, square = _embedding_moments(job, embeddings)
        tensors["mean.hidden.0"] = mean.float()
        tensors["deviation.hidden.0"] = _deviation(mean, square)
    return _commit(tensors, folder / SLICES)


def _moments(
    folder: Path, shards: Sequence[Shard], layer: int
) -> tuple[torch.Tensor, torch.Tensor]:
    total, square = torch.zeros(()), torch.zeros(())
    for shard in shards:
        with safe_open(folder / shard.name, framework="pt") as file:
            total = total + file.get_tensor(f"sum.hidden.{layer}")
            square = square + file.get_tensor(f"square.hidden.{layer}")
    return total, square


@torch.inference_mode()
def _embedding_moments(job: Job, embeddings: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    _, unique = _unique(job.input_ids)
    total, square, tokens = torch.zeros(()), torch.zeros(()), 0
    lengths = np.asarray([len(ids) for ids in unique], dtype=np.int64)
    for piece in split_by_tokens(
        np.arange(len(unique)), lengths, max_tokens=job.params.batch_tokens
    ):
        ids_BT, mask_BT = pad([unique[i] for i in piece], job.pad_id)
        states = embeddings(input_ids=ids_BT)[mask_BT].double()
        total, square = total + states.sum(0), square + states.square().sum(0)
        tokens += len(states)
    return total / tokens, square / tokens


def _deviation(mean: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
    """Standard deviation per channel; a channel that hardly moves counts as the median one."""
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    return torch.where(deviation < 1e-3 * deviation.median(), deviation.median(), deviation).float()


def _commit(tensors: dict[str, torch.Tensor], path: Path) -> Shard:
    """Write a safetensors file under a temporary name, then give it its own."""
    temporary = path.with_suffix(".tmp")
    save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
    digest, size = sha256_file(temporary), temporary.stat().st_size
    commit_file(temporary, path)
    offsets = tensors.get("offsets")
    return Shard(
        name=path.name,
        examples=len(offsets) - 1 if offsets is not None else 0,
        tokens=int(offsets[-1]) if offsets is not None else 0,
        bytes=size,
        sha256=digest,
    )

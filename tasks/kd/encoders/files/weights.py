"""Safetensors weights, one file or shards, checked by their headers.

Neither torch nor transformers is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from tasks.kd.errors import DataError
from tasks.kd.file_contents import read_object, require_content

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_LARGEST_HEADER = 100_000_000  # bytes, the limit of the format's own reader
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.pkl")
# First bytes of other formats.
_FORMATS = {
    b"PK\x03\x04": "a zip file, as torch.save writes",
    b"\x80": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"GGUF": "a GGUF file",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor's dtype and shape from a safetensors header, and the file that holds it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def read_headers(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's weights by name, from one file or all shards.

    Raises DataError for weights that are missing, ambiguous, cut or of another format.
    """
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file() and index.is_file():
        raise DataError(
            "two sets of weights",
            where=folder,
            expected=f"{WEIGHTS}, or {INDEX} and its shards",
            found="both",
            advice="Take away the one that is not the model's.",
        )
    if whole.is_file():
        return read_header(whole)
    if index.is_file():
        return _read_shards(folder, index)
    raise _no_weights(folder)


def classifier_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """The number of labels of the classifier among these weights; None without a classifier."""
    for name in ("classifier.weight", "classifier.out_proj.weight"):
        if name in tensors and len(tensors[name].shape) == 2:
            return tensors[name].shape[0]
    return None


def require_head(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise DataError unless the folder's weights include a classifier."""
    if classifier_rows(tensors) is not None:
        return
    found = "an encoder alone, or the head of another task"
    if (folder / "model_head.pkl").exists():
        found = "model_head.pkl, as SetFit keeps it: a pickle, which is never loaded here"
    raise DataError(
        "no classifier among the weights",
        where=folder,
        expected="classifier.weight or classifier.out_proj.weight",
        found=found,
        advice="With train_teacher.mode fine_tune the encoder gets a new head.",
    )


def read_header(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by name. Raises DataError for another or a cut file."""
    require_content(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        length = int.from_bytes(begin, "little")
        is_header = len(begin) == 8 and length <= _LARGEST_HEADER and file.read(1) == b"{"
        file.seek(8)
        header = file.read(length) if is_header else b""
    if not is_header:
        found = next((kind for magic, kind in _FORMATS.items() if begin.startswith(magic)), None)
        text = begin.decode("ascii", errors="replace")
        found = found or f"{size} bytes that begin with {text!r}"
        raise DataError("not a safetensors file", where=path, found=found)
    wanted = 8 + length
    if size >= wanted:
        wanted += _data_bytes(header, path)
    if size < wanted:
        raise DataError(
            "a safetensors file that was cut",
            where=path,
            expected=f"at least {wanted} bytes",
            found=size,
            advice="Copy or download it again.",
        )
    return _open_header(path)


def _data_bytes(header: bytes, path: Path) -> int:
    try:
        fields = json.loads(header)
        return max(int(v["data_offsets"][1]) for k, v in fields.items() if k != "__metadata__")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise DataError("not a safetensors header", where=path, found=str(error)[:200]) from error


def _open_header(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: Tensor(each.get_dtype(), tuple(each.get_shape()), path)
                for name, each in slices.items()
            }
    except (SafetensorError, OSError) as error:
        raise DataError("not a safetensors file", where=path, found=error) from error


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    """The tensors of an index's shards. Raises DataError for a missing shard or tensor."""
    try:
        places = dict(read_object(index)["weight_map"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError("not an index of shards", where=index, found=error) from error
    shards = sorted({str(shard) for shard in places.values()})
    outside = [shard for shard in shards if Path(shard).name != shard]
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if outside or absent or not shards:
        raise DataError(
            "shards of the weights are missing",
            where=index,
            expected=f"{len(shards)} shards beside it" if shards else "the names of shards",
            found=f"none at {', '.join((outside or absent)[:5])}" if shards else "none",
        )
    headers = {shard: read_header(folder / shard) for shard in shards}
    lost = sorted(name for name, shard in places.items() if name not in headers[shard])
    if lost:
        raise DataError(
            f"{len(lost)} weights are not in the shard that the index names",
            where=index,
            found=f"none called {', '.join(lost[:5])}",
        )
    return {name: tensor for shard in shards for name, tensor in headers[shard].items()}


def _no_weights(folder: Path) -> DataError:
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    others = sorted(path for path in folder.glob("*.safetensors"))
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    pickles = [path for path in pickles if path.name != "training_args.bin"]
    if shards:
        return DataError("shards without their index", where=folder / INDEX, found="no such file")
    if others:
        return DataError(
            "no weights of that name",
            where=folder / WEIGHTS,
            found=", ".join(path.name for path in others[:5]),
            advice="If it is the whole model, rename it.",
        )
    found = ", ".join(path.name for path in pickles[:5]) or "other formats or none"
    advice, mend = _convert(folder, pickles)
    return DataError(
        "no safetensors weights",
        where=folder / WEIGHTS,
        expected=WEIGHTS,
        found=found,
        advice=advice,
        mend=mend,
    )


def _convert(folder: Path, pickles: list[Path]) -> tuple[str | None, str | None]:
    """Advice and a command to convert pickled weights, which are never loaded: they can run code.

    transformers 5 reads no TensorFlow and no Flax weights.
    """
    if not pickles:
        return None, None
    is_torch = any(path.suffix in (".bin", ".pt", ".pth", ".ckpt") for path in pickles)
    advice = "Pickles run code when they are loaded, and are not loaded here."
    option = ""
    if not is_torch:
        kind = "tf" if pickles[0].suffix == ".h5" else "flax"
        option = f", from_{kind}=True"
        advice += f" That format is read by transformers 4 with {kind} installed."
    advice += " Convert them where you trust their maker, in an environment with nothing to lose."
    python = (
        "from transformers import AutoModelForSequenceClassification as Model; "
        f"Model.from_pretrained('{folder}'{option})"
        f".save_pretrained('{folder}', safe_serialization=True)"
    )
    return advice, f'python -c "{python}"'

"""A model's folder, looked at without loading it: whether each file is what its name says.

Neither torch nor transformers is loaded: `stillhouse check` asks this of every model at hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tasks.kd.configurations import parse_config, require_plain_config
from tasks.kd.errors import DataError

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
_LARGEST_HEADER = 100_000_000  # bytes, as the format's own reader allows
_POINTER = b"version https://git-lfs"
# What is read of a folder, shards aside; whatever lies beside it may be empty.
_READ = (
    *("config.json", WEIGHTS, INDEX, "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("spm.model", "sentencepiece.bpe.model"),
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.pkl")
# What other formats begin with.
_FORMATS = {
    b"PK\x03\x04": "a zip file, as torch.save writes",
    b"\x80": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"GGUF": "a GGUF file",
}
_PLAIN = ("F64", "F32", "F16", "BF16")
_COUNTS = ("I64", "I32", "BOOL", "U8")  # of buffers such as position_ids
# What begins the names of each family's encoder in a classifier.
BASES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "distilbert": "distilbert",
    "electra": "electra",
    "mpnet": "mpnet",
    "modernbert": "model",
    "deberta-v2": "deberta",
}
_INSIDE = r"(?:embeddings|embeddings_project|encoder|transformer|layers|final_norm|pooler)\."
# Parts of names that say how a model was wrapped when it was saved, and how to save it without.
_WRAPPERS = {
    "lora_": ("an adapter that was not merged", "Save model.merge_and_unload()."),
    "base_layer.": ("an adapter that was not merged", "Save model.merge_and_unload()."),
    "base_model.model.": ("an adapter's wrapper", "Save model.merge_and_unload()."),
    "modules_to_save.": ("an adapter's wrapper", "Save model.merge_and_unload()."),
    "original_module.": ("an adapter's wrapper", "Save model.merge_and_unload()."),
    "_orig_mod.": ("what torch.compile wraps a model in", "Save model._orig_mod."),
    "_fsdp_wrapped_module.": ("FullyShardedDataParallel's wrapper", "Save the module inside."),
    "_checkpoint_wrapped_module.": ("a checkpointing wrapper", "Save the module inside."),
    "module.": ("DataParallel's wrapper", "Save model.module."),
}
_QUANTISED = re.compile(
    r"\.(SCB|CB|absmax|quant_map|nested_\w+|quant_state\.[\w.]+|weight_format|qweight|qzeros"
    r"|scales|g_idx|_scale|weight_scale|_data|_packed_params[\w.]*|zero_point)$"
)


@dataclass(frozen=True)
class Tensor:
    """What a safetensors header says of one tensor, and the file that holds it."""

    dtype: str
    shape: tuple[int, ...]
    file: Path


def check_model_folder(folder: Path) -> dict[str, Any]:
    """The fields of the config.json of a model's folder, whose files were found whole.

    Raises DataError, naming the file, for what Git LFS or a web server left in a file's place, for
    files that are empty or cut, weights in another format or in none, an adapter, weights under
    the names of a wrapper, and fields of the configuration that the model would not use.
    """
    fields = read_config(folder)
    for path in (folder / name for name in sorted(_READ)):
        if path.is_file():
            _require_content(path)
    _refuse_adapter(folder)
    check_weights(read_headers(folder), fields["model_type"])
    return fields


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config.json, of a family that is known.

    Raises DataError if there is none, and as `require_plain_config`.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise DataError("not a model folder: config.json is missing", where=folder)
    fields = parse_config(read_text(path), path)
    require_plain_config(fields, path)
    return fields


def read_text(path: Path) -> str:
    """A text file of a model. Raises DataError for what stands in its place."""
    _require_content(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("not a text in UTF-8", where=path, found=error) from None


def require_weights(folder: Path) -> None:
    """Raise DataError unless the folder holds whole safetensors (pickles are never loaded)."""
    read_headers(folder)


def read_headers(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's weights by name, one file's or all shards'. Raises DataError."""
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
    """For how many labels the classifier among these weights is; None if there is none."""
    for name in ("classifier.weight", "classifier.out_proj.weight"):
        if name in tensors and len(tensors[name].shape) == 2:
            return tensors[name].shape[0]
    return None


def require_head(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise DataError unless a classifier is among a folder's weights."""
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


# --- what a file is ------------------------------------------------------------------------------


def _require_content(path: Path) -> None:
    """Raise DataError for an empty file, a Git LFS pointer and a page of a web server."""
    try:
        with path.open("rb") as file:
            begin = file.read(512)
    except OSError as error:
        raise DataError("a file that can't be read", where=path, found=error.strerror) from error
    if not begin:
        raise DataError("an empty file", where=path)
    if begin.startswith(_POINTER):
        raise DataError(
            "a Git LFS pointer in the place of the file",
            where=path,
            expected="its content",
            found="the name under which Git LFS keeps it",
            advice="The repository was cloned without git-lfs.",
            mend="git lfs pull",
        )
    if path.suffix != ".txt" and re.match(rb"\s*<(!doctype|html|\?xml)", begin, re.IGNORECASE):
        raise DataError(
            "a page of a web server in the place of the file",
            where=path,
            found=" ".join(begin.decode(errors="replace").split())[:80],
            advice="Download it again; it may ask for a login.",
        )


def read_header(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by name. Raises DataError for what is none, or is cut."""
    _require_content(path)
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
    """The tensors of an index's shards, each in the shard that the index names."""
    try:
        places = dict(json.loads(read_text(index))["weight_map"])
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
    found = {shard: read_header(folder / shard) for shard in shards}
    lost = sorted(name for name, shard in places.items() if name not in found[shard])
    if lost:
        raise DataError(
            f"{len(lost)} weights are not in the shard that the index names",
            where=index,
            found=f"none called {', '.join(lost[:5])}",
        )
    return {name: tensor for shard in shards for name, tensor in found[shard].items()}


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
    """What makes safetensors of weights in formats that are never loaded here, for they run code.

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


def _refuse_adapter(folder: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).exists():
            raise DataError(
                "an adapter beside the model, or without it",
                where=folder / name,
                expected="one model with the adapter merged into its weights",
                found=name,
                advice="Save model.merge_and_unload() with its tokenizer into a folder of its own.",
            )


# --- what the weights are called -----------------------------------------------------------------


def check_weights(tensors: Mapping[str, Tensor], family: str) -> None:
    """Raise DataError for weights under a wrapper's names, quantised, or of old positions."""
    for name, found in tensors.items():
        for fault, expected, advice in _find_name_faults(name, BASES[family]):
            raise DataError(fault, where=found.file, expected=expected, found=name, advice=advice)
    for name, found in tensors.items():
        if found.dtype not in (*_PLAIN, *_COUNTS) or _is_code(name, found):
            raise DataError(
                "weights that are quantised",
                where=found.file,
                expected=f"weights of {', '.join(_PLAIN)}",
                found=f"{name} of {found.dtype}",
                advice="Give the model as it was before it was quantised.",
            )


def _is_code(name: str, found: Tensor) -> bool:
    """Whether a tensor holds codes or scales of a quantised one."""
    counts = found.dtype in _COUNTS and name.rpartition(".")[2] in ("weight", "bias")
    return counts or _QUANTISED.search(name) is not None


def _find_name_faults(name: str, base: str) -> Iterator[tuple[str, str, str]]:
    for part, (what, advice) in _WRAPPERS.items():
        if name.startswith(part) or f".{part}" in name:
            expected = f"a name such as {_unwrapped(name)}"
            yield f"weights under the names of {what}", expected, advice
    wrapped = re.match(rf"(?:\w+\.)+?(?={base}\.{_INSIDE})", name)
    if wrapped:
        yield (
            f"weights under the names of a wrapper, {wrapped[0]!r}",
            f"a name such as {name.removeprefix(wrapped[0])}",
            "Save the transformers model inside it with save_pretrained.",
        )
    if "distance_embedding" in name:
        yield (
            "weights that the model would not use",
            "a model with absolute positions",
            "They are of relative positions (position_embedding_type), which transformers 5 left.",
        )


def _unwrapped(name: str) -> str:
    """What a weight would be called without its wrapper."""
    for part in _WRAPPERS:
        if part != "lora_":
            name = name.replace(f".{part}", ".").removeprefix(part)
    return re.sub(r"lora_\w+(\.default)?\.", "", name).replace("modules_to_save.default.", "")

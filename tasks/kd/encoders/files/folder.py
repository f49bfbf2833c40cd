"""A model's folder, checked without loading the model: each file must be what its name says.

Neither torch nor transformers is loaded, since `stillhouse check` does this for every local model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.kd.encoders.files.configurations import require_plain_config
from tasks.kd.encoders.files.weights import INDEX, WEIGHTS, Tensor, read_headers
from tasks.kd.errors import DataError
from tasks.kd.file_contents import read_object, require_content

# The files that are read of a folder, besides shards. Other files may be empty.
_READ = (
    *("config.json", WEIGHTS, INDEX, "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("spm.model", "sentencepiece.bpe.model"),
)
_PLAIN = ("F64", "F32", "F16", "BF16")
_COUNTS = ("I64", "I32", "BOOL", "U8")  # of buffers such as position_ids
# The prefix of each family's encoder weights in a classifier.
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
# Parts of names that show how a model was wrapped when it was saved, and how to save it plain.
_WRAPPERS = {
    "lora_": ("an adapter that was not merged", "Save what model.merge_and_unload() gives."),
    "base_layer.": ("an adapter that was not merged", "Save what model.merge_and_unload() gives."),
    "base_model.model.": ("an adapter's wrapper", "Save what model.merge_and_unload() gives."),
    "modules_to_save.": ("an adapter's wrapper", "Save what model.merge_and_unload() gives."),
    "original_module.": ("an adapter's wrapper", "Save what model.merge_and_unload() gives."),
    "_orig_mod.": ("what torch.compile wraps a model in", "Save model._orig_mod instead."),
    "_fsdp_wrapped_module.": ("FullyShardedDataParallel's wrapper", "Save the module inside."),
    "_checkpoint_wrapped_module.": ("a checkpointing wrapper", "Save the module inside."),
    "module.": ("DataParallel's wrapper", "Save model.module instead."),
}
_QUANTISED = re.compile(
    r"\.(SCB|CB|absmax|quant_map|nested_\w+|quant_state\.[\w.]+|weight_format|qweight|qzeros"
    r"|scales|g_idx|_scale|weight_scale|_data|_packed_params[\w.]*|zero_point)$"
)


def check_model_folder(folder: Path) -> dict[str, Any]:
    """The fields of a model folder's config.json, after its files were checked.

    Raises DataError, naming the file, for Git LFS pointers, web pages, empty and cut files, missing
    weights or weights of another format, an adapter, weights under a wrapper's names, and fields of
    the configuration that the model would not use.
    """
    fields = read_config(folder)
    for path in (folder / name for name in sorted(_READ)):
        if path.is_file():
            require_content(path)
    _refuse_adapter(folder)
    check_weights(read_headers(folder), fields["model_type"])
    return fields


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's config.json.

    Raises DataError if there is no such file, and as `require_plain_config` does.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise DataError("not a model folder: config.json is missing", where=folder)
    fields = read_object(path)
    require_plain_config(fields, path)
    return fields


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
    """Raise DataError for weights under a wrapper's names, quantised, or of relative positions."""
    for name, tensor in tensors.items():
        for fault, expected, advice in _find_name_faults(name, BASES[family]):
            raise DataError(fault, where=tensor.file, expected=expected, found=name, advice=advice)
    for name, tensor in tensors.items():
        if tensor.dtype not in (*_PLAIN, *_COUNTS) or _is_code(name, tensor):
            raise DataError(
                "weights that are quantised",
                where=tensor.file,
                expected=f"weights of {', '.join(_PLAIN)}",
                found=f"{name} of {tensor.dtype}",
                advice="Give the model as it was before it was quantised.",
            )


def _is_code(name: str, tensor: Tensor) -> bool:
    """Whether a tensor holds codes or scales of a quantised weight."""
    counts = tensor.dtype in _COUNTS and name.rpartition(".")[2] in ("weight", "bias")
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
    """A weight's name without its wrapper."""
    for part in _WRAPPERS:
        if part != "lora_":
            name = name.replace(f".{part}", ".").removeprefix(part)
    return re.sub(r"lora_\w+(\.default)?\.", "", name).replace("modules_to_save.default.", "")

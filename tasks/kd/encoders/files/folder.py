"""A model's folder, looked at without loading it: whether each file is what its name says.

Neither torch nor transformers is loaded: `stillhouse check` asks this of every model at hand.
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

# What is read of a folder, shards aside; whatever lies beside it may be empty.
_READ = (
    *("config.json", WEIGHTS, INDEX, "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("spm.model", "sentencepiece.bpe.model"),
)
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
    """The fields of the config.json of a model's folder, whose files were found whole.

    Raises DataError, naming the file, for what Git LFS or a web server left in a file's place, for
    files that are empty or cut, weights in another format or in none, an adapter, weights under
    the names of a wrapper, and fields of the configuration that the model would not use.
    """
    fields = read_config(folder)
    for path in (folder / name for name in sorted(_READ)):
        if path.is_file():
            require_content(path)
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

"""Loading encoders safely. Where each family keeps what the levels need is in `families`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks.kd.digests import read_json, sha256_file, sha256_json
from tasks.kd.errors import DataError
from tasks.kd.families import capture, kernel, layers_of, require_family

__all__ = [
    "WEIGHTS",
    "attention_kernel",
    "capture_hidden",
    "layers_of",
    "load_classifier",
    "load_config",
    "model_sha256",
    "new_classifier",
    "require_weights",
]

WEIGHTS = "model.safetensors"
# What transformers raises for a configuration of one field or another that can't be.
_INVALID = (AttributeError, KeyError, OSError, StrictDataclassError, TypeError, ValueError)
_NAMES = ("architectures", "dtype", "id2label", "label2id", "transformers_version")


def load_config(folder: Path) -> Any:
    """A model folder's configuration.

    Raises DataError, naming the file, if there is none, if it is of no known family and if
    transformers refuses it.
    """
    if not (folder / "config.json").is_file():
        raise DataError("not a model folder: config.json is missing", where=folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except _INVALID as error:
        raise _invalid(folder, error) from error
    require_family(config.model_type, where=folder / "config.json")
    return config


def _invalid(folder: Path, error: Exception) -> DataError:
    return DataError(
        "not the configuration of a model",
        where=folder / "config.json",
        found=" ".join(str(error).split())[:300],
    )


def load_classifier(folder: Path) -> torch.nn.Module:
    """A sequence classifier from a local folder: safetensors only, float32, eval mode.

    Raises DataError if a weight is missing or of another shape: it would be random.
    """
    return _load(folder, new_head=False)


def new_classifier(folder: Path, labels: list[str]) -> torch.nn.Module:
    """An encoder from a local folder with a new head of those labels; float32, eval mode.

    Raises DataError if a weight of the encoder is missing or of another shape.
    """
    return _load(
        folder,
        new_head=True,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        problem_type=None,  # whatever the encoder was tuned for before
    )


def _load(folder: Path, *, new_head: bool, **config: Any) -> torch.nn.Module:
    family = load_config(folder).model_type
    require_weights(folder)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=kernel(family),
            ignore_mismatched_sizes=True,  # reported in info, and refused below
            output_loading_info=True,
            **config,
        )
    except ValueError as error:  # fields that do not go together: heads that don't divide a width
        raise _invalid(folder, error) from error
    lost = [*info["missing_keys"], *(str(name[0]) for name in info["mismatched_keys"])]
    if new_head:
        encoder = f"{model.base_model_prefix}."
        lost = [name for name in lost if name.startswith(encoder)]
        lost = [name for name in lost if not name.startswith(f"{encoder}pooler.")]
    if lost:
        raise DataError(
            f"{len(lost)} weights are missing or of another shape",
            where=folder,
            expected="all that config.json asks for",
            found=f"none that fits {', '.join(sorted(lost)[:5])}",
        )
    return _module(model).eval()


def require_weights(folder: Path) -> None:
    """Raise DataError unless the folder holds safetensors weights (pickles are never loaded)."""
    if not any(folder.glob("*.safetensors")):
        raise DataError(
            "no safetensors weights", where=folder, expected=WEIGHTS, found="other formats or none"
        )


def model_sha256(folder: Path) -> str:
    """Digest of all that decides a saved model's states: weight bytes and configuration.

    Not of what only names things: labels, versions, the class that saved it.
    """
    config = {k: v for k, v in read_json(folder / "config.json").items() if k not in _NAMES}
    return sha256_json([sha256_file(folder / WEIGHTS), config])


def attention_kernel(model: torch.nn.Module) -> str:
    """The implementation of attention that a model computes with, as transformers names it."""
    config: Any = model.config
    return str(config._attn_implementation)


@contextmanager
def capture_hidden(
    model: torch.nn.Module, layers: tuple[int, ...]
) -> Iterator[dict[int, torch.Tensor]]:
    """While open, each forward pass of the model leaves its hidden states [B, T, D] here.

    As `families.capture` without projections.
    """
    with capture(model, layers, ()) as captured:
        yield captured.hidden


def _module(value: Any) -> torch.nn.Module:
    assert isinstance(value, torch.nn.Module)
    return value

"""Loading encoders safely. Where each family keeps what the levels need is in `families`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from tasks.kd.digests import read_json, sha256_file, sha256_json
from tasks.kd.errors import DataError
from tasks.kd.families import capture, kernel, layers_of, require_family

__all__ = [
    "WEIGHTS",
    "capture_hidden",
    "embeddings_of",
    "layers_of",
    "load_classifier",
    "load_config",
    "model_sha256",
    "new_classifier",
    "require_weights",
]

WEIGHTS = "model.safetensors"
_NAMES = ("architectures", "dtype", "id2label", "label2id", "transformers_version")


def load_config(folder: Path) -> Any:
    """A model folder's configuration. Raises DataError if there is none or of no known family."""
    if not (folder / "config.json").is_file():
        raise DataError("not a model folder: config.json is missing", where=folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    require_family(config.model_type, where=folder / "config.json")
    return config


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
    )


def _load(folder: Path, *, new_head: bool, **config: Any) -> torch.nn.Module:
    family = load_config(folder).model_type
    require_weights(folder)
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


def embeddings_of(model: torch.nn.Module) -> torch.nn.Module:
    """The one module that makes hidden layer 0 of token ids.

    Raises DataError where there are two: ELECTRA's, and their projection (`families.embed`).
    """
    base: Any = model.base_model
    if hasattr(base, "embeddings_project"):
        raise DataError(
            "no one module makes hidden layer 0",
            where=base.config.model_type,
            expected="embeddings as wide as the layers",
            found=f"{base.config.embedding_size} for {base.config.hidden_size}",
        )
    return _module(base.embeddings)


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

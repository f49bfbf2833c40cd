"""Encoders and classifiers from local folders: safetensors alone, whole, and no code of theirs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from tasks.kd.digests import read_json, sha256_file, sha256_json
from tasks.kd.encoders.files.architectures import kernel
from tasks.kd.encoders.files.folder import check_weights, read_config
from tasks.kd.encoders.files.label_names import read_label_names
from tasks.kd.encoders.files.weights import WEIGHTS, classifier_rows, read_headers, require_head
from tasks.kd.encoders.shape import as_module
from tasks.kd.errors import DataError

# What transformers raises for a configuration of one field or another that can't be.
_INVALID = (AttributeError, KeyError, OSError, StrictDataclassError, TypeError, ValueError)
_NAMES = ("architectures", "dtype", "id2label", "label2id", "transformers_version")
# How a model answers, which is not the file's to say.
_ANSWERS = {
    "return_dict": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,  # saves memory, and fails for lengths that it does not divide
}
_LABEL_FIELDS = ("id2label", "label2id", "num_labels", "_num_labels", "problem_type")
# Weights of a file that no classifier uses and that change nothing: buffers of old versions.
_BUFFERS = r"(?:.*\.)?(?:position_ids|embeddings\.token_type_ids)"
# Poolers of families whose classifier reads the last layer itself.
_POOLERS = r"(?:\w+\.)?pooler\..*"
_WITHOUT_POOLER = ("roberta", "xlm-roberta", "mpnet", "distilbert", "electra", "modernbert")
# The heads of all other tasks that a family's models are trained or tuned with.
_HEADS = (
    r"(?:cls|lm_head|qa_outputs|classifier|pre_classifier|vocab_transform|vocab_layer_norm"
    r"|vocab_projector|discriminator_predictions|generator_predictions|generator_lm_head"
    r"|sequence_summary|lm_predictions|mask_predictions|head|decoder|pooler|score)\..*"
)


def load_config(folder: Path) -> Any:
    """A model folder's configuration, without the names of its labels.

    Raises DataError, naming the file, if there is none, if it is of no known family, if it says
    what the model would not use, and if transformers refuses it.
    """
    return _build_config(folder, read_config(folder), None)


def _build_config(folder: Path, fields: dict[str, Any], labels: Sequence[str] | None) -> Any:
    """The configuration as transformers reads it; `labels` name its classes, unless None."""
    fields = {name: value for name, value in fields.items() if name not in _LABEL_FIELDS}
    if labels is not None:
        fields["id2label"] = dict(enumerate(labels))
        fields["label2id"] = {label: i for i, label in enumerate(labels)}
    try:
        return CONFIG_MAPPING[fields["model_type"]].from_dict({**fields, **_ANSWERS})
    except _INVALID as error:
        raise _invalid(folder, error) from error


def _invalid(folder: Path, error: Exception) -> DataError:
    return DataError(
        "not the configuration of a model",
        where=folder / "config.json",
        found=" ".join(f"{type(error).__name__}: {error}".split())[:300],
    )


def load_classifier(folder: Path, labels: Sequence[str] | None = None) -> torch.nn.Module:
    """A sequence classifier from a local folder: safetensors only, float32, eval mode.

    Its classes have the names of its configuration, or `labels` in their order. Raises DataError
    if a weight is missing, of another shape or not finite, for it would be random; and for weights
    that the model would not use, but for buffers and poolers that nothing reads.
    """
    fields, tensors = read_config(folder), read_headers(folder)
    _require_classifier(folder, fields)
    require_head(folder, tensors)
    names = read_label_names(fields, folder / "config.json", classifier_rows(tensors))
    if labels is not None and len(labels) != len(names):
        raise AssertionError("as many labels as the classifier has")
    config = _build_config(folder, fields, names if labels is None else labels)
    config.problem_type = fields.get("problem_type")
    return _load(folder, config, new_head=False)


def _require_classifier(folder: Path, fields: dict[str, Any]) -> None:
    """Raise DataError for a model of another task: some have weights of the very same names."""
    said = fields.get("architectures") or []
    others = [
        str(name) for name in said if re.search(r"For(?!SequenceClassification)[A-Z]", str(name))
    ]
    if others:
        raise DataError(
            "not a classifier of texts",
            where=folder / "config.json",
            expected="architectures that end in ForSequenceClassification",
            found=", ".join(others),
            advice="With train_teacher.mode fine_tune it gets a new head.",
        )


def new_classifier(folder: Path, labels: Sequence[str]) -> torch.nn.Module:
    """An encoder from a local folder with a new head of those labels; float32, eval mode.

    Raises DataError as `load_classifier`, but that a head may be missing and that of another task
    be there: whatever the encoder was tuned for before is left.
    """
    return _load(folder, _build_config(folder, read_config(folder), labels), new_head=True)


def _load(folder: Path, config: Any, *, new_head: bool) -> torch.nn.Module:
    check_weights(read_headers(folder), config.model_type)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation=kernel(config.model_type),
            ignore_mismatched_sizes=True,  # reported in info, and refused below
            output_loading_info=True,
        )
    # Fields that do not go together, such as heads that don't divide a width; sizes beyond memory.
    except (*_INVALID, MemoryError, RuntimeError) as error:
        raise _invalid(folder, error) from error
    lost = [*info["missing_keys"], *(str(name[0]) for name in info["mismatched_keys"])]
    if new_head:
        encoder = f"{model.base_model_prefix}."
        lost = [name for name in lost if name.startswith(encoder)]
        lost = [name for name in lost if not name.startswith(f"{encoder}pooler.")]
    left = _find_left(config.model_type, info["unexpected_keys"], new_head=new_head)
    if lost:
        raise _lost(folder, lost, left)
    if left:
        raise DataError(
            f"{len(left)} weights would not be used",
            where=folder / WEIGHTS,
            expected=f"those of {type(model).__name__} with this config.json",
            found=", ".join(left[:5]),
            advice="The model that they belong to computes something else than this one.",
        )
    _require_finite(folder, model)
    return as_module(model).eval()


def _find_left(family: str, unexpected: Sequence[str], *, new_head: bool) -> list[str]:
    """The weights of a file that a classifier of that family would have had to use."""
    harmless = [_BUFFERS]
    harmless += [_POOLERS] if family in _WITHOUT_POOLER else []
    harmless += [_HEADS] if new_head else []
    pattern = re.compile("|".join(f"(?:{each})" for each in harmless))
    return sorted(name for name in unexpected if not pattern.fullmatch(name))


def _lost(folder: Path, lost: Sequence[str], left: Sequence[str]) -> DataError:
    found = f"none that fits {', '.join(sorted(lost)[:5])}"
    if left:
        found += f"; the file has {', '.join(left[:5])}"
    return DataError(
        f"{len(lost)} weights are missing or of another shape",
        where=folder,
        expected="all that config.json asks for",
        found=found,
    )


def _require_finite(folder: Path, model: Any) -> None:
    """Raise DataError for weights with NaN or infinity."""
    broken = [name for name, w in model.named_parameters() if not torch.isfinite(w).all()]
    if broken:
        raise DataError(
            f"{len(broken)} weights hold NaN or infinity",
            where=folder / WEIGHTS,
            found=", ".join(broken[:5]),
            advice="Its training went wrong, or its file was damaged.",
        )


def model_sha256(folder: Path) -> str:
    """Digest of all that decides a saved model's states: weight bytes and configuration.

    Labels, versions and the class that saved it only name things, and are left out.
    """
    config = {k: v for k, v in read_json(folder / "config.json").items() if k not in _NAMES}
    return sha256_json([sha256_file(folder / WEIGHTS), config])


def attention_kernel(model: torch.nn.Module) -> str:
    """The implementation of attention that a model computes with, as transformers names it."""
    config: Any = model.config
    return str(config._attn_implementation)

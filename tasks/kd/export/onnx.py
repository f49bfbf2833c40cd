"""A trained student as files to serve: ONNX in float32 and int8, tokenizer, model card.

The exported graph takes `input_ids` and `attention_mask` (int64 [B, T], both axes free) and gives
`logits` (float32 [B, C]); token types are zeros inside it. Equal weights give equal bytes, since
the exporter's notes about the machine (source paths, traces) are removed.

N examples, B examples of a batch, T tokens, C classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks.kd.data.examples.prepared import Ids
from tasks.kd.digests import write_bytes
from tasks.kd.documents.data_card import DataCard
from tasks.kd.documents.exported import Contract, ExportReport
from tasks.kd.documents.training import StudentReport, TeacherReport
from tasks.kd.errors import ExportError
from tasks.kd.export.int8 import write_int8
from tasks.kd.export.parity import measure_agreement, require_agreement, require_parity
from tasks.kd.recipe.sections import ExportStudent
from tasks.kd.teacher.ensemble import classifiers_of
from tasks.kd.tokens.encoding import read_tokenizer

FLOAT32, INT8 = "model.onnx", "model.int8.onnx"
SERVED = {"float32": FLOAT32, "int8": INT8}
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "logits"

_PROTOBUF_LIMIT = 2**31 - 2**26  # protobuf's limit is 2 GiB; the graph needs some of it


@dataclass(frozen=True)
class Papers:
    """The model card's facts about the student's making; configs are the fields of config.json."""

    recipe: str
    data_card: DataCard
    teacher_report: TeacherReport
    teacher_config: Mapping[str, Any]
    student_report: StudentReport
    student_config: Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """A trained student, and the facts that its files state."""

    model: torch.nn.Module
    tokenizer: Path
    labels: tuple[str, ...]
    max_length_tokens: int
    pad_token_id: int
    papers: Papers


def export_student(
    trained: Trained, examples: Sequence[Ids], *, params: ExportStudent, out: Path
) -> ExportReport:
    """Write all files of the student into `out`, compare them with torch, return the report.

    Raises ExportError if the float32 file's logits differ from torch's by more than
    `max_logit_difference`, or if int8 is to be served and agrees with float32 in less than
    `min_int8_agreement` of the examples.
    """
    float32, int8 = out / FLOAT32, out / INT8
    write_onnx(trained.model, float32)
    write_int8(float32, int8)
    chosen = list(examples[: params.parity_examples])
    pad = trained.pad_token_id
    difference = require_parity(
        trained.model, float32, chosen, pad_token_id=pad, limit=params.max_logit_difference
    )
    agreement = measure_agreement(float32, int8, chosen, pad_token_id=pad)
    if params.serve == "int8":
        require_agreement(agreement, int8, limit=params.min_int8_agreement)
    write_tokenizer(trained.tokenizer, out / "tokenizer.json", trained.max_length_tokens)
    report = ExportReport(
        max_logit_difference=difference,
        int8_agreement=agreement,
        int8_agreement_suffices=agreement >= params.min_int8_agreement,
        parity_examples=len(chosen),
        sizes={path.name: path.stat().st_size for path in (float32, int8)},
        serve=SERVED[params.serve],
    )
    _make_contract(trained, SERVED[params.serve]).write(out)
    write_bytes(out / "model_card.md", _model_card(trained, report).encode())
    report.write(out)
    return report


def _make_contract(trained: Trained, served: str) -> Contract:
    return Contract(
        labels=trained.labels,
        max_length_tokens=trained.max_length_tokens,
        pad_token_id=trained.pad_token_id,
        serve=served,
        inputs=INPUTS,
        output=OUTPUT,
    )


def _model_card(trained: Trained, report: ExportReport) -> str:
    environment = Environment(
        loader=PackageLoader("tasks.kd.export"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  Markdown, and names are quoted as code in it
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _as_code
    template = environment.get_template("model_card.md.j2")
    return template.render(student=trained, report=report, **vars(trained.papers))


def _as_code(name: str) -> str:
    """A name as Markdown code on one line, whatever characters it holds."""
    return "`` " + " ".join(name.replace("`", "'").split()) + " ``"


def write_tokenizer(source: Path, target: Path, max_length_tokens: int) -> None:
    """Write a tokenizer.json that cuts at the maximum length and does not pad."""
    tokenizer = read_tokenizer(source, max_length_tokens)
    write_bytes(target, tokenizer.to_str().encode())


# --- torch to ONNX -------------------------------------------------------------------------------


class _LogitsOnly(torch.nn.Module):
    """The classifier with two tensors in and one out, without keyword arguments."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] from int64 [B, T]."""
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def write_onnx(model: torch.nn.Module, path: Path, *, one_file: bool = True) -> None:
    """Write a transformers classifier as float32 ONNX; the model is left in evaluation mode.

    `one_file=False` puts the weights of a model beyond protobuf's 2 GiB into a file beside it.
    Raises ExportError for such a model otherwise.
    """
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    if size > _PROTOBUF_LIMIT and one_file:
        raise ExportError(
            "the model does not fit one ONNX file",
            where=path,
            expected=f"at most {_PROTOBUF_LIMIT} bytes of float32 weights",
            found=size,
        )
    program = _trace(model)
    if size > _PROTOBUF_LIMIT:
        program.save(str(path), external_data=True)
        return
    proto = program.model_proto
    _forget_the_machine(proto)
    write_bytes(path, proto.SerializeToString(deterministic=True))


def _trace(model: torch.nn.Module) -> Any:
    """The model as an ONNX program, made by torch.export.

    Attention is traced in its plain form, since the fused kernels' fallbacks give a larger graph.
    """
    example = torch.tensor([[5, 6, 7, 8, 9, 6, 7], [8, 9, 5, 6, 7, 0, 0]])
    mask = (example != 0).long()
    axes = {0: "batch", 1: "sequence"}
    kernels: list[tuple[Any, str]] = []
    for part in classifiers_of(model):
        config: Any = part.config
        kernels.append((part, config._attn_implementation))
        kernels[-1][0].set_attn_implementation("eager")
    try:
        with _quiet_exporter():
            return torch.onnx.export(
                _LogitsOnly(model).eval(),
                (example, mask),
                dynamo=True,
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes=(axes, axes),
                verbose=False,
            )
    finally:
        for part, kernel in kernels:
            part.set_attn_implementation(kernel)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's remarks about its own internals; other warnings pass."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # "torchvision is not installed"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec.*is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", r"# The axis name: .* will not be used", UserWarning)
            yield
    finally:
        registration.setLevel(level)


def _forget_the_machine(proto: onnx.ModelProto) -> None:
    """Remove stack traces, source paths and comments, so that equal weights give equal bytes."""
    graph = proto.graph
    parts: list[Any] = [proto, graph]
    for group in (graph.node, graph.initializer, graph.input, graph.output, graph.value_info):
        parts.extend(group)
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]

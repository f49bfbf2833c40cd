"""Calibration, before the first shard: each stream's statistics, its codec and the codec's error.

It takes texts spread over all lengths. Statistics come from every second one and errors are
measured on the others, so that a codec is judged on texts that it was not fitted to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tasks.kd.cache.format.codec import Codec, Moments, Statistics, decode, encode, relative_error
from tasks.kd.data.examples.batching import split_by_tokens
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.data.examples.targets import Targets
from tasks.kd.encoders.files.architectures import ATTENTION_FAMILIES
from tasks.kd.encoders.shape import depth, width
from tasks.kd.errors import DataError, NonFiniteLossError
from tasks.kd.recipe.streams import kind_of, layer_of
from tasks.kd.targets.targets import derive, run_teacher

EXAMPLES = 256
# Batches are smaller than the writer's: attention is compared in float64, which sets the peak.
_BATCH_TOKENS = 2048


def sample(lengths: Sequence[int]) -> list[int]:
    """Positions of the calibration texts among texts sorted by length: spread over all lengths."""
    return [int(i) for i in np.unique(np.linspace(0, len(lengths) - 1, EXAMPLES).astype(np.int64))]


def deviations(
    targets: Targets, input_ids: Sequence[Ids], layers: Iterable[int]
) -> dict[int, torch.Tensor]:
    """Standard deviation [D] of each hidden layer's channels, for standardised losses.

    They are taken over the given training texts as the targets serve them: the same from a cache,
    within its codec's tolerance, and from a live teacher.
    """
    layers = tuple(layers)
    order = sorted(range(len(input_ids)), key=lambda i: len(input_ids[i]))
    by_layer: dict[int, Moments] = {}
    for position in sample(order) if layers else ():
        streams = targets.fetch([input_ids[order[position]]])
        for layer in layers:
            states_TD = streams[f"hidden.{layer}"][0]
            by_layer.setdefault(layer, Moments(states_TD.shape[1])).add(states_TD)
    return {layer: moments.statistics().deviation_D for layer, moments in by_layer.items()}


@dataclass(frozen=True)
class Calibration:
    """One stream's codec, its measured errors and, for hidden states, its statistics."""

    codec: Codec
    relative_error: float
    attention_kl: float | None
    width: int
    statistics: Statistics | None


@dataclass(frozen=True)
class _Batch:
    mask_BT: torch.Tensor
    ids_BT: torch.Tensor
    states: dict[str, torch.Tensor]


class Sample:
    """The teacher's hidden states on the calibration texts, in batches of like length.

    Nothing computed from them is kept: the attention of long texts is larger than all else.
    """

    def __init__(
        self,
        teacher: torch.nn.Module,
        input_ids: Sequence[Ids],
        streams: Iterable[str],
        *,
        pad_id: int,
        batch_tokens: int,
    ) -> None:
        """`input_ids` sorted by length. One forward pass over at most `EXAMPLES` of them."""
        self._teacher = teacher.eval()
        self._streams = tuple(s for s in streams if kind_of(s) in ("logits", "hidden"))
        rows = sample([len(ids) for ids in input_ids])
        self._fitted = self._run([input_ids[i] for i in rows[::2]], pad_id, batch_tokens)
        held_back = rows[1::2] if len(rows) > 1 else rows
        self._held_back = self._run([input_ids[i] for i in held_back], pad_id, batch_tokens)

    def statistics(self, layer: int) -> Statistics:
        """Mean and deviation of a hidden layer's channels."""
        moments = Moments(width(self._teacher))
        for batch in self._fitted:
            moments.add(batch.states[f"hidden.{layer}"][batch.mask_BT])
        return moments.statistics()

    def calibrate(self, stream: str, codec: Codec, max_relative_error: float) -> Calibration:
        """Measure one stream: the codec asked for, or float32 where its error passes the bound."""
        if stream == "logits":
            classes = self._held_back[0].states[stream].shape[-1]
            return Calibration("float32", 0.0, None, classes, None)
        statistics = self.statistics(layer_of(stream))
        states = _tokens(self._held_back, stream)
        error = relative_error(states, codec, statistics)
        if not error <= max_relative_error:
            codec, error = "float32", 0.0
        kl = self._attention_kl(layer_of(stream), codec, statistics)
        return Calibration(codec, _rounded(error), kl, states.shape[1], statistics)

    def derived_errors(
        self, computed: Sequence[str], kept: Mapping[int, tuple[Codec, Statistics]]
    ) -> dict[str, float]:
        """Relative error of streams that are computed from decoded states, by name.

        ‖own − theirs‖ / ‖theirs‖ over all held-back texts; of attention, that is of the scores
        before the softmax, for all pairs of real tokens.
        """
        differences, norms = dict.fromkeys(computed, 0.0), dict.fromkeys(computed, 0.0)
        for batch in self._held_back if computed else ():
            states = {layer: _decoded(batch, layer, *kept[layer]) for layer in kept}
            decoded = derive(self._teacher, computed, states, batch.ids_BT, batch.mask_BT)
            fresh = run_teacher(self._teacher, batch.ids_BT, batch.mask_BT, computed)
            for name in computed:
                _require_numbers(name, fresh[name], batch.mask_BT)
                own, theirs = (_real(name, x[name], batch.mask_BT) for x in (decoded, fresh))
                differences[name] += float((own - theirs).double().square().sum())
                norms[name] += float(theirs.double().square().sum())
        return {
            name: _rounded((differences[name] / max(norms[name], 1e-24)) ** 0.5)
            for name in computed
        }

    def _attention_kl(self, layer: int, codec: Codec, statistics: Statistics) -> float | None:
        """Mean KL, in nats per query, of the next layer's attention from the decoded states."""
        family = self._teacher.config.model_type  # type: ignore[union-attr]
        if layer >= depth(self._teacher) or family not in ATTENTION_FAMILIES:
            return None
        total, queries, name = 0.0, 0, f"attention.{layer + 1}"
        for batch in self._held_back:
            exact = batch.states[f"hidden.{layer}"]
            logs = []
            for state in (exact, _decoded(batch, layer, codec, statistics)):
                derived = derive(self._teacher, [name], {layer: state}, batch.ids_BT, batch.mask_BT)
                raw = derived[name].double()
                logs.append(
                    raw.masked_fill(~batch.mask_BT[:, None, None], -torch.inf).log_softmax(-1)
                )
            kl = logs[0].exp() * (logs[0] - logs[1]).nan_to_num(0.0)
            real = kl.sum(-1).mean(1)[batch.mask_BT]
            total, queries = total + float(real.sum()), queries + len(real)
        return _rounded(max(total / queries, 0.0))

    def _run(self, texts: Sequence[Ids], pad_id: int, batch_tokens: int) -> list[_Batch]:
        lengths = np.asarray([len(ids) for ids in texts], dtype=np.int64)
        batches, most = [], min(batch_tokens, _BATCH_TOKENS)
        for piece in split_by_tokens(np.arange(len(texts)), lengths, max_tokens=most):
            ids_BT, mask_BT = pad([texts[i] for i in piece], pad_id)
            streams = run_teacher(self._teacher, ids_BT, mask_BT, self._streams)
            for name, value in streams.items():
                _require_numbers(name, value, mask_BT)
            batches.append(_Batch(mask_BT, ids_BT, streams))
        return batches


def _require_numbers(name: str, value: torch.Tensor, mask_BT: torch.Tensor) -> None:
    """Raise NonFiniteLossError, naming the stream, for NaN or infinity at a real token.

    A teacher that computes in another type than the fingerprint says raises DataError.
    """
    if value.dtype != torch.float32:
        raise DataError(
            f"the teacher's {name} is not what the cache's fingerprint says",
            expected="float32",
            found=str(value.dtype).removeprefix("torch."),
        )
    if kind_of(name) == "attention":  # -inf is a pair that a local window excludes
        real = value.masked_fill(torch.isneginf(value), 0.0).transpose(1, 2)[mask_BT]
    else:
        real = value if name == "logits" else value[mask_BT]
    if not bool(torch.isfinite(real).all()):
        raise NonFiniteLossError(
            f"the teacher's {name} holds NaN or infinity",
            advice="Its weights or its training are at fault; nothing was kept of the stream.",
        )


def _tokens(batches: Sequence[_Batch], stream: str) -> torch.Tensor:
    """The states `[M, D]` of all real tokens."""
    return torch.cat([batch.states[stream][batch.mask_BT] for batch in batches])


def _decoded(batch: _Batch, layer: int, codec: Codec, statistics: Statistics) -> torch.Tensor:
    """The hidden states of a batch as a reader of the cache would see them."""
    real = batch.states[f"hidden.{layer}"]
    encoded = encode(real[batch.mask_BT], codec, statistics)
    states = torch.zeros_like(real)
    states[batch.mask_BT] = decode(encoded.values, encoded.scale, statistics)
    return states


def _real(name: str, value: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """A stream without padding, and without pairs that a local window excludes."""
    if kind_of(name) != "attention":
        return value[mask_BT]
    pairs = (mask_BT[:, :, None] & mask_BT[:, None, :])[:, None].expand_as(value)
    real = value[pairs]
    return real.masked_fill(~torch.isfinite(real), 0.0)


def _rounded(value: float) -> float:
    """A measurement to three digits, so that machines don't differ by its last bit."""
    return float(f"{value:.3g}")

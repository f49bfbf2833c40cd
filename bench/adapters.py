"""The family adapters on the real teacher: what they give against the model's own outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch

from bench.caches import Bench
from bench.figures import Figure, Findings, paragraphs
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Ids
from tasks.kd.encoders.capture import capture
from tasks.kd.encoders.loading import new_classifier
from tasks.kd.encoders.running import QKV, embed, project, run_layer, scores
from tasks.kd.encoders.shape import depth

GOAL = 1e-5
BATCH = 16
KINDS = {
    "embed": "embed: hidden layer 0",
    "run_layer": "run_layer: each hidden layer from the one below",
    "scores": "project and scores: each layer's attention",
    "captured states": "capture: each hidden layer",
    "captured attention": "capture and scores: each layer's attention",
    "padding": "padding: each hidden layer alone and in a batch",
}
NOTES = """
Own is what the adapters give of a model with the kernel that it is used with (sdpa); theirs are
`hidden_states` and `attentions` (after the softmax) of one pass of the same weights with
`attn_implementation="eager"`, in eval mode. embed, run_layer, project and scores are given the
eager model's own state below. Compared are real tokens, and pairs of them; nothing of the padding.

Relative is ‖own − theirs‖ ÷ ‖theirs‖ over a layer's elements in all texts, the greatest of all
layers; absolute is the greatest difference of one element. `by_layer` in the settings has both.

Padding: theirs is each text alone, without any; own is the same text in a batch, padded to its
longest. Both with sdpa.
"""


@dataclass
class Difference:
    """Of one layer, over all texts so far."""

    absolute: float = 0.0
    apart: float = field(default=0.0, repr=False)
    norm: float = field(default=0.0, repr=False)

    def add(self, own: torch.Tensor, theirs: torch.Tensor) -> None:
        """Some more elements; they must be finite, and there must be some."""
        difference = (own - theirs).double()
        if not len(own) or not bool(torch.isfinite(difference).all()):
            raise SystemExit("nothing to compare, or no numbers")
        self.absolute = max(self.absolute, float(difference.abs().max()))
        self.apart += float(difference.square().sum())
        self.norm += float(theirs.double().square().sum())

    @property
    def relative(self) -> float:
        """Of norms."""
        return float((self.apart / self.norm) ** 0.5)


Found = dict[str, dict[int, Difference]]


def measure(bench: Bench) -> Findings:
    """Both sets of weights on real texts of all lengths."""
    material = bench.material
    labels = list(material.teacher.config.id2label.values())  # type: ignore[union-attr,operator]
    base = material.folder / "artifacts" / material.name / "fetch_sources" / "teacher"
    torch.manual_seed(0)  # of the new head, which nothing here runs
    models = {"tuned": material.teacher, "base": new_classifier(base, labels)}
    texts = [*material.long.sample(bench.pick(96, 8)).input_ids]
    texts += material.short.sample(bench.pick(96, 8)).input_ids
    batches = [texts[i : i + BATCH] for i in range(0, len(texts), BATCH)]
    bench.watch.expect(len(models) * len(batches))
    found: dict[str, Found] = {}
    for name, model in models.items():
        eager, found[name] = _eager(model), {kind: {} for kind in KINDS}
        for batch in batches:
            compare(model, eager, batch, material.long.pad_id, found[name])
            bench.watch.advance()
    return Findings(
        tuple(figure for name in found for figure in _figures(name, found[name])),
        {
            "texts": len(texts),
            "tokens": sum(len(ids) for ids in texts),
            "longest": max(len(ids) for ids in texts),
            "batch": BATCH,
            "by_layer": {name: _by_layer(one) for name, one in found.items()},
        },
        paragraphs(NOTES),
    )


def _eager(model: torch.nn.Module) -> torch.nn.Module:
    eager: Any = deepcopy(model).eval()
    eager.set_attn_implementation("eager")
    return eager  # type: ignore[no-any-return]


@torch.no_grad()
def compare(
    model: torch.nn.Module, eager: torch.nn.Module, texts: Sequence[Ids], pad_id: int, found: Found
) -> None:
    """Add one batch's differences, by kind and layer."""
    ids_BT, mask_BT = pad(texts, pad_id)
    said = eager(
        input_ids=ids_BT,
        attention_mask=mask_BT.long(),
        output_hidden_states=True,
        output_attentions=True,
    )
    states, attentions = said.hidden_states, said.attentions
    layers = range(1, depth(model) + 1)
    if len(states) != len(layers) + 1 or len(attentions) != len(layers):
        raise SystemExit("the eager model did not return all that it was asked for")
    own = dict(_own(model, ids_BT, mask_BT, states))
    for (kind, layer), value in own.items():
        if kind in ("scores", "captured attention"):
            pairs = (mask_BT[:, :, None] & mask_BT[:, None])[:, None].expand_as(value)
            _add(found, kind, layer, value[pairs], attentions[layer - 1][pairs])
        else:
            _add(found, kind, layer, value[mask_BT], states[layer][mask_BT])
    for row, ids in enumerate(texts):
        for layer, alone in _captured(model, *pad([ids], pad_id)).items():
            beside = own["captured states", layer][row, : len(ids)]
            _add(found, "padding", layer, beside, alone[0])


def _own(
    model: torch.nn.Module,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    states: Sequence[torch.Tensor],
) -> Iterator[tuple[tuple[str, int], torch.Tensor]]:
    """What the adapters give, by kind and layer."""
    layers = tuple(range(1, depth(model) + 1))
    yield ("embed", 0), embed(model, ids_BT, mask_BT)
    with capture(model, (0, *layers), layers) as captured:
        model(input_ids=ids_BT, attention_mask=mask_BT.long())
    for layer in (0, *layers):
        yield ("captured states", layer), captured.hidden[layer]
    for layer in layers:
        below = states[layer - 1]
        yield ("run_layer", layer), run_layer(model, layer, below, mask_BT)
        qkv = project(model, layer, below)
        yield ("scores", layer), _softmax(model, layer, qkv, mask_BT)
        yield ("captured attention", layer), _softmax(model, layer, captured.qkv[layer], mask_BT)


def _captured(
    model: torch.nn.Module, ids_BT: torch.Tensor, mask_BT: torch.Tensor
) -> dict[int, torch.Tensor]:
    with capture(model, tuple(range(depth(model) + 1)), ()) as captured:
        model(input_ids=ids_BT, attention_mask=mask_BT.long())
    return captured.hidden


def _softmax(model: torch.nn.Module, layer: int, qkv: QKV, mask_BT: torch.Tensor) -> torch.Tensor:
    raw = scores(model, layer, qkv, mask_BT)
    return raw.masked_fill(~mask_BT[:, None, None], -torch.inf).softmax(-1)


def _add(found: Found, kind: str, layer: int, own: torch.Tensor, theirs: torch.Tensor) -> None:
    found[kind].setdefault(layer, Difference()).add(own, theirs)


def _figures(name: str, found: Mapping[str, Mapping[int, Difference]]) -> Iterator[Figure]:
    for kind, title in KINDS.items():
        relative = max(one.relative for one in found[kind].values())
        absolute = max(one.absolute for one in found[kind].values())
        yield Figure(f"relative difference, {name} weights, {title}", (relative,), at_most=GOAL)
        yield Figure(f"absolute difference, {name} weights, {title}", (absolute,))


def _by_layer(found: Mapping[str, Mapping[int, Difference]]) -> dict[str, Any]:
    return {
        kind: {
            str(layer): {"relative": one.relative, "absolute": one.absolute}
            for layer, one in sorted(layers.items())
        }
        for kind, layers in found.items()
    }

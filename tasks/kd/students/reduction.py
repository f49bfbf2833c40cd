"""A narrower student made of its teacher's weights: fewer channels, heads and neurons.

One basis (`bases`) carries the stream of hidden states into the student's width: a choice of
channels (`slices`), or principal components (`pca`). Every matrix is multiplied by the basis on the
side where it reads or writes the stream. What is exact and what is not:

- Embeddings, reading, writing and residual additions are exact within the kept directions.
- The mean of the lost part is taken from the bias of the norm before. A matrix's response to that
  mean goes into its own bias.
- A LayerNorm divides by the deviation over all channels, the student's by that over the kept ones.
  Their ratio is one number here (`Basis.scale`); in truth it differs by token and layer.
- These encoders normalise after the addition, so a norm's gains act on the residual stream itself.
  They can't be folded into the matrices behind it, as SliceGPT (arXiv:2401.15024) does before it
  rotates. Channels keep their gains exactly; components get the mean of their channels' gains,
  which is exact if all gains are equal.
- Heads, feed-forward neurons and the head's neurons are functions of their own, which no rotation
  mixes. Both methods keep them whole, ranked by what they write, or leave them out.
- If heads must be narrower, each keeps its foremost channels (slices), or the best approximation
  of that rank (pca) to its scores and to what it writes.

At full width both methods give the teacher itself, bit by bit.

D width, N the student's, H heads kept, K head width, R the student's, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tasks.kd.encoders.shape import heads, layers_of, width
from tasks.kd.errors import ShapeError
from tasks.kd.students.bases import Basis, principal, selected
from tasks.kd.students.layouts import (
    Layout,
    embedding_norm,
    embedding_projection,
    layout_of,
    linear,
    norm,
)
from tasks.kd.students.weighing import (
    channel_weights,
    foremost,
    head_weights,
    neuron_weights,
    output_weights,
    weights_moment,
)

Method = Literal["slices", "pca"]
_RIDGE = 1e-6  # of the mean square per channel, so that no direction of the states is empty


def reduce_width(
    student: nn.Module,
    teacher: nn.Module,
    layers: Sequence[int],
    method: Method,
    moment_DD: Tensor | None = None,
) -> Basis:
    """Fill the student's weights from the teacher's chosen layers, 1-based, and return the basis.

    `moment_DD` is the mean of x xᵀ over hidden states x (`weighing.hidden_moment`); without it, it
    is estimated from the weights. Nothing is random. Raises ShapeError for a family that can't be
    reduced, and for a student that is larger than its teacher in any size.
    """
    layout_of(teacher)
    _require_narrower(student, teacher)
    moment_DD = weights_moment(teacher) if moment_DD is None else moment_DD.double()
    if method == "pca":
        basis = principal(moment_DD, width(student))
    else:
        weights_D = channel_weights(teacher, layers, moment_DD)
        basis = selected(moment_DD, foremost(weights_D, width(student)))
    put_reduced(student, teacher, layers, Reduction(basis, moment_DD, method))
    return basis


class Reduction:
    """A basis, the second moment of its states, and the method that narrows heads."""

    def __init__(self, basis: Basis, moment_DD: Tensor, method: Method) -> None:
        self.basis, self.method = basis, method
        self.moment_DD = moment_DD.double()
        columns_DN = basis.columns
        self.moment_NN = columns_DN.T @ self.moment_DD @ columns_DN / basis.scale**2

    def reading(self, module: nn.Linear, mean_D: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [O, N] and bias [O] of a matrix that reads states whose mean is `mean_D`."""
        weight_OD = module.weight.double()
        bias_O = module.bias.double() + weight_OD @ self.basis.lost(mean_D)
        return weight_OD @ self.basis.columns * self.basis.scale, bias_O

    def writing(self, module: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight [N, I] and bias [N] of a matrix that writes states."""
        return self.basis.narrow(module.weight.T).T, self.basis.narrow(module.bias)


@torch.no_grad()
def put_reduced(
    student: nn.Module, teacher: nn.Module, layers: Sequence[int], reduction: Reduction
) -> None:
    """Fill the student's weights from the teacher's chosen layers, 1-based, by any basis."""
    layout, own, theirs = layout_of(teacher), layers_of(student), layers_of(teacher)
    mean_D = _put_embeddings(student, teacher, reduction)
    for target, layer in zip(own, layers, strict=True):
        source = theirs[layer - 1]
        counts = (heads(student), heads(teacher))
        _put_attention((target, source), layout, counts, reduction, mean_D)
        _put_norm(norm(target, layout.attended_norm), norm(source, layout.attended_norm), reduction)
        mean_D = norm(source, layout.attended_norm).bias
        _put_neurons((target, source), (layout.up, layout.down), reduction, mean_D)
        _put_norm(norm(target, layout.norm), norm(source, layout.norm), reduction)
        mean_D = norm(source, layout.norm).bias
    _put_head(student, teacher, reduction, mean_D)


def _put_embeddings(student: nn.Module, teacher: nn.Module, reduction: Reduction) -> Tensor:
    """Fill the embeddings' tables and norm, and return the assumed mean [D] of hidden layer 0.

    A factorised encoder's tables keep their width, and their projection is narrowed.
    """
    own: Any = student.base_model
    theirs: Any = teacher.base_model
    project = embedding_projection(teacher)
    for name, table in theirs.embeddings.named_children():
        if isinstance(table, nn.Embedding):
            rows = reduction.basis.narrow(table.weight) if project is None else table.weight
            own.embeddings.get_submodule(name).weight.copy_(rows)
    before = embedding_norm(teacher)
    if project is None:
        _put_norm(embedding_norm(student), before, reduction)
        return before.bias
    embedding_norm(student).load_state_dict(before.state_dict())
    _put(own.embeddings_project, *reduction.writing(project))
    return project.bias + project.weight @ before.bias


def _put_attention(
    modules: tuple[nn.Module, nn.Module],
    layout: Layout,
    counts: tuple[int, int],
    reduction: Reduction,
    mean_D: Tensor,
) -> None:
    """Fill a layer's attention with the heads that write most, narrowed if necessary.

    In pairs, the student's part comes first.
    """
    target, source = modules
    projections = [linear(source, path) for path in layout.projections]
    attended = linear(source, layout.attended)
    split = (counts[1], -1)
    weights_H = head_weights(
        projections[2].weight.double().unflatten(0, split),
        attended.weight.double().unflatten(1, split).transpose(0, 1),
        reduction.moment_DD,
    )
    kept = foremost(weights_H, counts[0])
    read = [reduction.reading(projection, mean_D) for projection in projections]
    written_NI, bias_N = reduction.writing(attended)
    attention = _Heads(
        [weight.unflatten(0, split)[kept] for weight, _ in read],
        [bias.unflatten(0, split)[kept] for _, bias in read],
        written_NI.unflatten(1, split).transpose(0, 1)[kept],
    )
    narrow = len(linear(target, layout.projections[0]).weight) // counts[0]
    if narrow < attention.out_HNK.shape[2]:
        # A head's attention sums to 1, so its values' biases reach the output unchanged.
        bias_N = bias_N + torch.einsum("hnk,hk->n", attention.out_HNK, attention.biases_HK[2])
        attention = _narrower(attention, narrow, reduction)
    for place, path in enumerate(layout.projections):
        weight, bias = attention.weights_HKN[place], attention.biases_HK[place]
        _put(linear(target, path), weight.flatten(0, 1), bias.flatten())
    _put(linear(target, layout.attended), attention.out_HNK.transpose(0, 1).flatten(1), bias_N)


@dataclass(frozen=True)
class _Heads:
    """Weights and biases of queries, keys and values, in that order, and the output matrices."""

    weights_HKN: list[Tensor]
    biases_HK: list[Tensor]
    out_HNK: Tensor


def _narrower(attention: _Heads, narrow: int, reduction: Reduction) -> _Heads:
    """The same heads, `narrow` channels wide; their values have no bias any more."""
    queries, keys, values = attention.weights_HKN
    query_biases, key_biases, _ = attention.biases_HK
    # Scores are divided by the root of the head's width, which is smaller for narrow heads.
    factor = (narrow / queries.shape[1]) ** 0.25
    # A bias is the weight of one more channel, which is always 1.
    asking = torch.cat([queries, query_biases.unsqueeze(2)], 2)
    asked = torch.cat([keys, key_biases.unsqueeze(2)], 2)
    moment_NN = reduction.moment_NN
    extended = torch.block_diag(moment_NN, torch.ones(1, 1, dtype=torch.float64))
    nothing = torch.eye(len(moment_NN), dtype=torch.float64)
    pair = _foremost_pair if reduction.method == "slices" else _low_rank_pair
    scores = [pair(*head, (extended, extended), narrow) for head in zip(asking, asked, strict=True)]
    written = [
        pair(value, out.T, (moment_NN, nothing), narrow)
        for value, out in zip(values, attention.out_HNK, strict=True)
    ]
    asking, asked = (factor * torch.stack(part) for part in zip(*scores, strict=True))
    values, outs = (torch.stack(part) for part in zip(*written, strict=True))
    biases = [asking[..., -1], asked[..., -1], torch.zeros_like(asking[..., -1])]
    return _Heads([asking[..., :-1], asked[..., :-1], values], biases, outs.transpose(1, 2))


Moments = tuple[Tensor, Tensor]


def _foremost_pair(
    left_KI: Tensor, right_KI: Tensor, moments: Moments, narrow: int
) -> tuple[Tensor, Tensor]:
    """The rows of both matrices that weigh most in leftᵀ right."""
    weights = output_weights(left_KI, moments[0]) * output_weights(right_KI, moments[1])
    kept = foremost(weights, narrow)
    return left_KI[kept], right_KI[kept]


def _low_rank_pair(
    left_KI: Tensor, right_KI: Tensor, moments: Moments, narrow: int
) -> tuple[Tensor, Tensor]:
    """The best approximation of rank `narrow` to leftᵀ right, as two factors [R, I].

    It is the best one for inputs of these second moments: the largest singular values of the
    product between the moments' Cholesky roots (Eckart and Young), split equally between both
    factors.
    """
    roots = [torch.linalg.cholesky(_ridged(moment)) for moment in moments]
    (left_basis, left), (right_basis, right) = (
        torch.linalg.qr((part @ root).T)
        for part, root in zip((left_KI, right_KI), roots, strict=True)
    )
    left_turn, sizes, right_turn = torch.linalg.svd(left @ right.T)
    root_R = sizes[:narrow].sqrt()
    parts = (
        (left_basis @ left_turn[:, :narrow] * root_R).T,
        (right_basis @ right_turn.T[:, :narrow] * root_R).T,
    )
    left_RI, right_RI = (
        torch.linalg.solve_triangular(root, part, upper=False, left=False)
        for root, part in zip(roots, parts, strict=True)
    )
    return left_RI, right_RI


def _ridged(moment: Tensor) -> Tensor:
    size = len(moment)
    return moment + _RIDGE * moment.trace() / size * torch.eye(size, dtype=torch.float64)


def _put_neurons(
    modules: tuple[nn.Module, nn.Module],
    paths: tuple[str, str],
    reduction: Reduction,
    mean_D: Tensor,
) -> None:
    """Fill a feed-forward block with the neurons that read and write most.

    In pairs, the student's part comes first.
    """
    (up, down), (wide_up, wide_down) = ([linear(m, path) for path in paths] for m in modules)
    weights_F = neuron_weights(
        wide_up.weight.double(), wide_down.weight.double(), reduction.moment_DD
    )
    kept = foremost(weights_F, len(up.weight))
    weight, bias = reduction.reading(wide_up, mean_D)
    _put(up, weight[kept], bias[kept])
    weight, bias = reduction.writing(wide_down)
    _put(down, weight[:, kept], bias)


def _put_head(student: nn.Module, teacher: nn.Module, reduction: Reduction, mean_D: Tensor) -> None:
    """Fill the head with the neurons that read and write most, as many as the student's width."""
    layout = layout_of(teacher)
    pooled, classifier = linear(teacher, layout.pooled), linear(teacher, layout.classifier)
    weights_D = neuron_weights(
        pooled.weight.double(), classifier.weight.double(), reduction.moment_DD
    )
    kept = foremost(weights_D, width(student))
    weight, bias = reduction.reading(pooled, mean_D)
    _put(linear(student, layout.pooled), weight[kept], bias[kept])
    _put(linear(student, layout.classifier), classifier.weight[:, kept], classifier.bias)


def _put_norm(own: nn.LayerNorm, theirs: nn.LayerNorm, reduction: Reduction) -> None:
    own.weight.copy_(reduction.basis.gain(theirs.weight))
    own.bias.copy_(reduction.basis.narrow(theirs.bias))


def _put(module: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    module.weight.copy_(weight)
    module.bias.copy_(bias)


def _require_narrower(student: nn.Module, teacher: nn.Module) -> None:
    own, theirs = (_sizes(model) for model in (student, teacher))
    for name, size in own.items():
        if size > theirs[name]:
            raise ShapeError(
                "a student that starts from its teacher made narrower can't have more than it",
                where=f"train_student.student, {name}",
                expected=f"at most {theirs[name]}",
                found=size,
            )


def _sizes(model: nn.Module) -> dict[str, int]:
    up = linear(layers_of(model)[0], layout_of(model).up)
    return {
        "hidden_size": width(model),
        "attention_heads": heads(model),
        "width of a head": width(model) // heads(model),
        "intermediate_size": up.out_features,
    }

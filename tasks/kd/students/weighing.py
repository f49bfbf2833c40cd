"""Weights of a teacher's channels, heads and neurons, from second moments of its states.

D width, H heads, K head width, F feed-forward neurons, O outputs of any matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tasks.kd.data.examples.prepared import Ids
from tasks.kd.encoders.capture import capture
from tasks.kd.encoders.shape import depth, layers_of, width
from tasks.kd.students.embeddings import read_tables, second_moment
from tasks.kd.students.layouts import embedding_norm, embedding_projection, layout_of, linear, norm

# --- the states' second moment -------------------------------------------------------------------


@torch.no_grad()
def hidden_moment(teacher: nn.Module, input_ids: Sequence[Ids], examples: int) -> Tensor:
    """The mean [D, D] float64 of x xᵀ over hidden states x of all layers, embeddings included.

    It is over `examples` texts, or all if there are fewer, spread over all lengths. Each token
    counts once.
    """
    order = sorted(range(len(input_ids)), key=lambda i: len(input_ids[i]))
    taken = np.unique(np.linspace(0, len(order) - 1, min(examples, len(order))).astype(np.int64))
    layers = tuple(range(depth(teacher) + 1))
    moment_DD = torch.zeros(width(teacher), width(teacher), dtype=torch.float64)
    count = 0
    for place in taken:
        ids_1T = torch.from_numpy(input_ids[order[place]].astype(np.int64))[None]
        with capture(teacher, layers, ()) as captured:
            teacher(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))
        for state_1TD in captured.hidden.values():
            moment_DD += state_1TD[0].double().T @ state_1TD[0].double()
            count += state_1TD.shape[1]
    return moment_DD / count


@torch.no_grad()
def weights_moment(teacher: nn.Module) -> Tensor:
    """An estimate [D, D] float64 of `hidden_moment` from the weights alone.

    It begins with all words at all positions. Every residual addition is taken to have two
    independent, equally large parts: the stream, and a sub-layer's output if each head attends to
    one token and feed-forward neurons are independent. Raises ShapeError as `layout_of` does.
    """
    layout = layout_of(teacher)
    moment_DD = _after_norm(second_moment(read_tables(teacher)), embedding_norm(teacher))
    if (project := embedding_projection(teacher)) is not None:
        weight, bias = project.weight.double(), project.bias.double()
        moment_DD = weight @ moment_DD @ weight.T + torch.outer(bias, bias)
    moments = [moment_DD]
    for layer in layers_of(teacher):
        values = linear(layer, layout.projections[2]).weight.double()
        written = linear(layer, layout.attended).weight.double() @ values
        moment_DD = _added(moment_DD, written @ moment_DD @ written.T)
        moment_DD = _after_norm(moment_DD, norm(layer, layout.attended_norm))
        down = linear(layer, layout.down).weight.double()
        moment_DD = _after_norm(_added(moment_DD, down @ down.T), norm(layer, layout.norm))
        moments.append(moment_DD)
    return torch.stack(moments).mean(0)


def _added(stream_DD: Tensor, written_DD: Tensor) -> Tensor:
    size = written_DD.trace()
    return stream_DD / stream_DD.trace() + (written_DD / size if size > 0 else 0)


def _after_norm(moment_DD: Tensor, module: nn.LayerNorm) -> Tensor:
    """The second moment after a LayerNorm: centred, of mean square 1, with gains and bias."""
    mean_D = moment_DD.mean(0)
    centred_DD = moment_DD - mean_D[:, None] - mean_D + mean_D.mean()
    gain_D, bias_D = module.weight.double(), module.bias.double()
    scale = len(moment_DD) / centred_DD.trace()
    return scale * gain_D[:, None] * centred_DD * gain_D + torch.outer(bias_D, bias_D)


# --- weights of parts: the greatest are kept ------------------------------------------------------


@torch.no_grad()
def channel_weights(teacher: nn.Module, layers: Iterable[int], moment_DD: Tensor) -> Tensor:
    """The weight [D] of each channel of the states: its mean square, times what reads it.

    Each matrix of the chosen layers that reads states has one vote, and so has the head's.
    """
    layout, modules = layout_of(teacher), layers_of(teacher)
    readers = [linear(teacher, layout.pooled)]
    for layer in layers:
        paths = (*layout.projections, layout.up)
        readers += [linear(modules[layer - 1], path) for path in paths]
    votes = [reader.weight.double().square().sum(0) * moment_DD.diagonal() for reader in readers]
    return torch.stack([vote / vote.sum() for vote in votes]).sum(0)


def head_weights(value_HKD: Tensor, out_HDK: Tensor, moment_DD: Tensor) -> Tensor:
    """The mean square [H] of each head's output, if it attends to one token."""
    written_HDD = out_HDK @ value_HKD
    return ((written_HDD @ moment_DD) * written_HDD).sum((1, 2))


def neuron_weights(up_FD: Tensor, down_DF: Tensor, moment_DD: Tensor) -> Tensor:
    """The mean square [F] of each neuron's input, times the squared size of what it writes."""
    return output_weights(up_FD, moment_DD) * down_DF.square().sum(0)


def output_weights(weight_OD: Tensor, moment_DD: Tensor) -> Tensor:
    """The mean square [O] of a matrix's outputs for the states."""
    return ((weight_OD @ moment_DD) * weight_OD).sum(1)


def foremost(weights: Tensor, count: int) -> Tensor:
    """The places int64 of the `count` greatest weights, ascending; the first win ties."""
    return weights.argsort(descending=True, stable=True)[:count].sort().values

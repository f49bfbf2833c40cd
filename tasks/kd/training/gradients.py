"""The gradients of one global batch: the same whatever the micro-batches and ranks.

Each rank works through its own micro-batches without a word to the others. Then all say at once
how it went, and only if it went well everywhere are the gradients added up: a rank that runs out
of memory leaves none of the others waiting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from tasks.kd.data.examples.prepared import Split
from tasks.kd.data.examples.trainable import Moment, Trainable
from tasks.kd.errors import ParamsError
from tasks.kd.processes import ranks
from tasks.kd.recipe.compute import Compute
from tasks.kd.training.checkpoint import State
from tasks.kd.training.feeding import Feed, MicroBatch, Work
from tasks.kd.training.precision import forward_pass

# What a rank says of its pass: it went well, memory did not suffice, or not even for row n alone.
_WELL, _TOO_LITTLE, _ALONE = 0, 1, 2


# Of the way from a level's last factor to what would balance it now, in logarithms; and how far
# from 1 a factor may go.
_TAKEN, _LARGEST = 0.5, 1e3


@dataclass(frozen=True)
class Asked:
    """What is wanted of a step beside its gradients.

    `measured` asks for each level's own gradient norm. `balanced` asks for those, and for new
    factors of the levels, made from them before the step's gradients are.
    """

    moment: Moment
    measured: bool
    balanced: bool


@dataclass
class _Pass:
    """What a rank's own pass left, beside the gradients at the weights."""

    outcome: int
    largest: int  # padded tokens of a micro-batch
    sums: torch.Tensor
    # By level, before its weight: a gradient for each of the weights that it reaches.
    of_level: dict[str, list[torch.Tensor | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Losses:
    """Each level's value in a global batch, its weight and, if measured, its gradient's norm.

    `weights` are those in force: the recipe's at that moment, times the level's factor. A norm is
    that of the weighted level. `halved_to` is the new bound in tokens, if memory did not suffice
    at first.
    """

    raw: Mapping[str, float]
    weights: Mapping[str, float]
    level_norms: Mapping[str, float]
    halved_to: int | None


class Computer:
    """Computes the gradients of the weights that an objective trains when this is made."""

    def __init__(
        self, objective: Trainable, feed: Feed, split: Split, compute: Compute, seed: int
    ) -> None:
        """`feed` assembles rows of `split`; `seed` is that of the recipe."""
        self._objective, self._feed, self._split = objective, feed, split
        self._compute, self._seed = compute, seed
        self._lengths = split.lengths
        self._weights = [p for p in objective.parameters() if p.requires_grad]
        self._own = [p for p in objective.student.parameters() if p.requires_grad]
        self._device = self._weights[0].device

    def compute(self, work: Work, state: State, asked: Asked) -> Losses:
        """The gradients of a step's global batch, on every rank the same.

        Where memory does not suffice on some rank, all begin the step again with micro-batches of
        half as many tokens, a bound that the feed and `state` keep. `state` keeps the levels'
        factors as well. Raises ParamsError, on all ranks, if one example alone is too much, or if
        no level reaches a weight that is trained.
        """
        halved_to = None
        while True:
            work = self._feed.cut(work)
            own = self._pass(work, state, asked)
            said = ranks.gather([own.outcome, own.largest, *own.sums.tolist()], self._device)
            outcome = int(max(each[0] for each in said))
            if outcome == _WELL:
                sums = [sum(each) for each in zip(*(each[2:] for each in said), strict=True)]
                return self._add_up(own, sums, state, asked, halved_to)
            self._forget()
            if outcome >= _ALONE:
                raise self._too_large(outcome - _ALONE)
            # An example longer than the bound is a micro-batch of its own: not what to halve.
            largest = min(self._feed.max_tokens, int(max(each[1] for each in said)))
            halved_to = max(1, largest // 2)
            state.micro_batch_tokens = self._feed.max_tokens = halved_to

    def _pass(self, work: Work, state: State, asked: Asked) -> _Pass:
        """Run this rank's micro-batches forwards and backwards, until memory does not suffice."""
        seed_step(self._seed, state.step, ranks.rank())
        counts = self._objective.counts(state.phase, self._lengths[work.rows])
        largest = max(micro.batch.input_ids_BT.numel() for micro in work.batches)
        own = _Pass(_WELL, largest, torch.zeros(len(counts), device=self._device))
        self._objective.train()
        for micro in work.batches:
            # The error itself is let go before anything else: it holds the tensors of the pass.
            try:
                self._backward(micro, counts, state, asked, own)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                single = len(micro.rows) == 1
                own.outcome = _ALONE + int(micro.rows[0]) if single else _TOO_LITTLE
                own.of_level = {}
                break
        return own

    def _backward(
        self,
        micro: MicroBatch,
        counts: Mapping[str, int],
        state: State,
        asked: Asked,
        own: _Pass,
    ) -> None:
        with forward_pass(self._compute, self._device):
            totals = self._objective(micro.batch, micro.targets, asked.moment)
        parts = {name: totals[name].mean(count) * micro.weight for name, count in counts.items()}
        together = torch.stack(list(parts.values()))
        if not together.requires_grad:
            raise self._unreached(state)
        if asked.measured or asked.balanced:
            for name, part in parts.items():
                found = self._gradients(part * state.loss_scale)
                own.of_level[name] = _add(own.of_level.get(name), found)
        if not asked.balanced:  # else they are made of the levels' own
            weights = self._weights_at(asked.moment, state)
            wanted = together.new_tensor([weights[name] for name in counts])
            (together * wanted * state.loss_scale).sum().backward()
        own.sums += together.detach()

    def _gradients(self, part: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """One level's gradients; None at weights that it does not reach."""
        if not part.requires_grad:
            return (None,) * len(self._weights)
        return torch.autograd.grad(part, self._weights, retain_graph=True, allow_unused=True)

    def _weights_at(self, moment: Moment, state: State) -> dict[str, float]:
        """The levels' weights in force."""
        weights = self._objective.weights(moment)
        return {name: weight * state.factors.get(name, 1.0) for name, weight in weights.items()}

    def _add_up(
        self, own: _Pass, sums: list[float], state: State, asked: Asked, halved_to: int | None
    ) -> Losses:
        """Add up all ranks' gradients at the weights; returns the step's losses."""
        norms = self._norms(own, state.loss_scale)
        if asked.balanced:
            state.factors = balance(state.factors, norms)
        weights = self._weights_at(asked.moment, state)
        if asked.balanced:
            self._combine(own, weights)
        if all(weight.grad is None for weight in self._own):  # but for projections
            raise self._unreached(state)
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        if not asked.balanced:
            ranks.add_up(gradients)
        if state.loss_scale != 1:
            for gradient in gradients:
                gradient.div_(state.loss_scale)
        raw = dict(zip(weights, sums, strict=True))
        weighted = {name: weights[name] * norm for name, norm in norms.items()}
        return Losses(raw, weights, weighted, halved_to)

    def _norms(self, own: _Pass, loss_scale: float) -> dict[str, float]:
        """Each measured level's norm before its weight; `own.of_level` becomes that of all ranks.

        They are the first rank's, so that machines that round in another way have equal factors.
        """
        norms = []
        for parts in own.of_level.values():
            there = [part for part in parts if part is not None]
            ranks.add_up(there)
            norms.append(torch.nn.utils.get_total_norm(there).to(self._device))
        if not norms:
            return {}
        said = ranks.gather((torch.stack(norms) / loss_scale).tolist(), self._device)
        return dict(zip(own.of_level, said[0], strict=True))

    def _combine(self, own: _Pass, weights: Mapping[str, float]) -> None:
        """Put the weighted sum of the levels' gradients at the weights."""
        for place, weight in enumerate(self._weights):
            for name, parts in own.of_level.items():
                part = parts[place]
                if part is None:
                    continue
                if weight.grad is None:
                    weight.grad = part * weights[name]
                else:
                    weight.grad.add_(part, alpha=weights[name])
                parts[place] = None  # not needed again

    def _forget(self) -> None:
        for weight in self._weights:
            weight.grad = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _unreached(self, state: State) -> ParamsError:
        phase = self._objective.phases[state.phase]
        return ParamsError(
            "no level of the phase reaches a weight that it trains",
            where=f"phase {phase.name}, trained_layers",
            expected="a layer at or below one that a level compares",
            found=str(phase.trained_layers),
        )

    def _too_large(self, row: int) -> ParamsError:
        return ParamsError(
            "memory does not suffice for one example",
            where=f"example {self._split.example_ids[row]}",
            expected="a micro-batch of one example that fits",
            found=f"{self._lengths[row]} tokens that do not",
            advice="Shorten the texts (prepare_data.max_length_tokens), make the student smaller, "
            "or set compute.gradient_checkpointing.",
        )


def balance(factors: Mapping[str, float], norms: Mapping[str, float]) -> dict[str, float]:
    """Factors that bring each level's gradient norm, before its weight, nearer to the mean of all.

    The first ones bring it there; later ones half of the way, so that one odd batch does not
    decide. A level whose gradient is zero keeps its factor; all do where a norm is not finite.
    GradNorm (Chen et al., arXiv:1711.02257) with its rate exponent 0, by division instead of a
    learned weight.
    """
    there = {name: norm for name, norm in norms.items() if norm > 0}
    if not there or not all(math.isfinite(norm) for norm in norms.values()):
        return dict(factors)
    mean = sum(there.values()) / len(there)
    found = {name: factors.get(name, 1.0) for name in norms}
    for name, norm in there.items():
        wanted = min(max(mean / norm, 1 / _LARGEST), _LARGEST)
        is_first = name not in factors
        found[name] = wanted if is_first else found[name] ** (1 - _TAKEN) * wanted**_TAKEN
    return found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return "not enough memory" in said or "can't allocate memory" in said


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout for one step on one rank."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def _add(
    before: list[torch.Tensor | None] | None, more: tuple[torch.Tensor | None, ...]
) -> list[torch.Tensor | None]:
    """A level's gradients so far, plus those of one more micro-batch."""
    if before is None:
        return list(more)
    return [
        b if a is None else a if b is None else a + b for a, b in zip(before, more, strict=True)
    ]

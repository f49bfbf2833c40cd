"""The gradients of one global batch: the same whatever the micro-batches and ranks.

Each rank works through its own micro-batches without a word to the others. Then all say at once
how it went, and only if it went well everywhere are the gradients added up: a rank that runs out
of memory leaves none of the others waiting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from tasks.kd import ranks
from tasks.kd.checkpoint import State
from tasks.kd.data import Split
from tasks.kd.errors import ParamsError
from tasks.kd.feeding import Feed, MicroBatch, Work
from tasks.kd.objective import Objective, level_name
from tasks.kd.params import Compute
from tasks.kd.precision import autocast

# What a rank says of its pass: it went well, memory did not suffice, or not even for row n alone.
_WELL, _TOO_LITTLE, _ALONE = 0, 1, 2


@dataclass
class _Pass:
    """What a rank's own pass left, beside the gradients at the weights."""

    outcome: int
    largest: int  # padded tokens of a micro-batch
    sums: torch.Tensor
    of_level: dict[str, list[torch.Tensor | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What a global batch gave: each level's value and, if measured, its gradient's norm.

    The norm is that of the weighted level. `halved_to` is the new bound in tokens, if memory did
    not suffice at first.
    """

    raw: Mapping[str, float]
    level_norms: Mapping[str, float]
    halved_to: int | None


class Computer:
    """Leaves gradients at the weights of an objective."""

    def __init__(
        self, objective: Objective, feed: Feed, split: Split, compute: Compute, seed: int
    ) -> None:
        """`feed` assembles rows of `split`; `seed` is that of the recipe."""
        self._objective, self._feed, self._split = objective, feed, split
        self._compute, self._seed = compute, seed
        self._lengths = split.lengths
        self._weights = [p for p in objective.parameters() if p.requires_grad]
        self._device = self._weights[0].device

    def compute(self, work: Work, state: State, *, measured: bool) -> Found:
        """The gradients of a step's global batch, on every rank the same.

        Where memory does not suffice on some rank, all begin the step again with micro-batches of
        half as many tokens, a bound that `state` keeps. Raises ParamsError, on all ranks, if one
        example alone is too much.
        """
        halved_to = None
        while True:
            work = self._feed.cut(work, state.micro_batch_tokens)
            own = self._pass(work, state, measured=measured)
            said = ranks.gather([own.outcome, own.largest, *own.sums.tolist()], self._device)
            outcome = int(max(each[0] for each in said))
            if outcome == _WELL:
                return self._add_up(own, [each[2:] for each in said], state, halved_to)
            self._forget()
            if outcome >= _ALONE:
                raise self._too_large(outcome - _ALONE)
            # An example longer than the bound is a micro-batch of its own: not what to halve.
            largest = min(state.micro_batch_tokens, int(max(each[1] for each in said)))
            halved_to = state.micro_batch_tokens = max(1, largest // 2)

    def _pass(self, work: Work, state: State, *, measured: bool) -> _Pass:
        """This rank's micro-batches, forwards and backwards, until memory does not suffice."""
        seed_step(self._seed, state.step, ranks.rank())
        counts = self._objective.counts(state.phase, self._lengths[work.rows])
        largest = max(micro.batch.input_ids_BT.numel() for micro in work.batches)
        own = _Pass(_WELL, largest, torch.zeros(len(counts), device=self._device))
        self._objective.train()
        for micro in work.batches:
            # The error itself is let go before anything else: it holds the tensors of the pass.
            try:
                self._backward(micro, counts, state, own, measured=measured)
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
        own: _Pass,
        *,
        measured: bool,
    ) -> None:
        with autocast(self._compute, self._device):
            totals = self._objective(micro.batch, micro.targets, state.phase)
        parts = torch.stack([totals[name].mean(counts[name]) for name in counts])
        levels = self._objective.phases[state.phase].levels
        weights = {level_name(level): level.weight for level in levels}
        wanted = parts.new_tensor([weights[name] for name in counts])
        weighted = parts * wanted * micro.weight * state.loss_scale
        if measured:
            for name, part in zip(counts, weighted, strict=True):
                found = torch.autograd.grad(
                    part, self._weights, retain_graph=True, allow_unused=True
                )
                own.of_level[name] = _add(own.of_level.get(name), found)
        weighted.sum().backward()
        own.sums += parts.detach() * micro.weight

    def _add_up(
        self, own: _Pass, sums: list[list[float]], state: State, halved_to: int | None
    ) -> Found:
        """From this rank's part to the whole."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        ranks.add_up(gradients)
        if state.loss_scale != 1:
            for gradient in gradients:
                gradient.div_(state.loss_scale)
        norms = {}
        for name, parts in own.of_level.items():
            there = [part for part in parts if part is not None]
            ranks.add_up(there)
            norms[name] = float(torch.nn.utils.get_total_norm(there)) / state.loss_scale
        names = [level_name(level) for level in self._objective.phases[state.phase].levels]
        values = [sum(each) for each in zip(*sums, strict=True)]
        return Found(dict(zip(names, values, strict=True)), norms, halved_to)

    def _forget(self) -> None:
        for weight in self._weights:
            weight.grad = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _too_large(self, row: int) -> ParamsError:
        return ParamsError(
            "memory does not suffice for one example",
            where=f"example {self._split.example_ids[row]}",
            expected="a micro-batch of one example that fits",
            found=f"{self._lengths[row]} tokens that do not",
            advice="Shorten the texts (prepare_data.max_length_tokens), make the student smaller, "
            "or set compute.gradient_checkpointing.",
        )


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
    """Gradients of a level so far, with those of one more micro-batch."""
    if before is None:
        return list(more)
    return [
        b if a is None else a if b is None else a + b for a, b in zip(before, more, strict=True)
    ]

"""What the levels share: precision, masks, and a softmax that padding can't turn into NaN.

B examples, T tokens, D width. `allowed` and `pairs_BTT` are true where a query may see a key.
"""

from __future__ import annotations

import torch

from tasks.kd.errors import ShapeError
from tasks.kd.shapes import require_shape

# Below any norm or mean distance of real states, above what float32 loses when it is divided by.
TINY = 1e-12


def precise(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32, or as it is in float64: so gradients can be checked numerically."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def precise_pair(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in float32; both in float64 if the student is."""
    student = precise(student)
    return student, teacher.to(student.dtype)


def product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Matrix product in the precision of its arguments, also where autocast would lower it."""
    with torch.autocast(first.device.type, enabled=False):
        return first @ second


def require_axes(name: str, tensor: torch.Tensor, axes: str) -> None:
    """Raise ShapeError unless the tensor has as many axes as there are letters."""
    if tensor.dim() != len(axes):
        raise ShapeError(
            f"{name} has the wrong shape",
            expected=f"({', '.join(axes)})",
            found=tuple(tensor.shape),
        )


def require_mask(mask_BT: torch.Tensor, shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless it is a bool mask of that shape.

    Of a mask of integers, as tokenizers make it, indexing would pick rows 0 and 1.
    """
    require_shape("attention mask", mask_BT, shape)
    if mask_BT.dtype != torch.bool:
        raise ShapeError("attention mask is not bool", expected="torch.bool", found=mask_BT.dtype)


def require_states(
    student_BTD: torch.Tensor,
    teacher_BTD: torch.Tensor,
    mask_BT: torch.Tensor,
    *,
    same_width: bool = True,
) -> None:
    """Raise ShapeError unless both sides' states and the mask are of the same tokens."""
    require_axes("student hidden states", student_BTD, "BTD")
    examples, tokens, width = student_BTD.shape
    width = width if same_width else teacher_BTD.shape[-1]
    require_shape("teacher hidden states", teacher_BTD, (examples, tokens, width))
    require_mask(mask_BT, (examples, tokens))


def blank(states_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """The states with zeros at padding, so that nothing there, not even NaN, gets further."""
    return states_BTD.masked_fill(~mask_BT[:, :, None], 0)


def pairs_of(mask_BT: torch.Tensor) -> torch.Tensor:
    """[B, T, T]: true where query and key are both real tokens."""
    return mask_BT[:, :, None] & mask_BT[:, None, :]


def count_tokens(mask_BT: torch.Tensor) -> int:
    """Real tokens of all examples."""
    return int(mask_BT.sum())


def count_pairs(mask_BT: torch.Tensor) -> int:
    """Real tokens squared, summed over examples."""
    return int(mask_BT.sum(1).square().sum())


def sum_tokens(values_N: torch.Tensor, mask_BT: torch.Tensor, *, each: bool) -> torch.Tensor:
    """Sum of one value per real token, example after example; with `each`, every example's [B]."""
    if not each:
        return values_N.sum()
    sums_B = values_N.new_zeros(mask_BT.shape[0])
    return sums_B.index_add(0, mask_BT.nonzero()[:, 0], values_N)


def sum_examples(values_B: torch.Tensor, *, each: bool) -> torch.Tensor:
    """Sum of one value per example; with `each`, as they are."""
    return values_B if each else values_B.sum()


def pool(states_BTD: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """[B, D]: mean of the real tokens' states."""
    return blank(states_BTD, mask_BT).sum(1) / mask_BT.sum(1).clamp_min(1)[:, None]


def masked_log_softmax(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Log-softmax over the last axis among allowed places; the least finite number elsewhere.

    Not -inf: a row without an allowed place (a query that is padding) would be NaN, there and in
    the backward pass. To overwrite that later is not enough for torch's anomaly detection, which
    must stay of use where a real NaN is looked for.
    """
    least = torch.finfo(scores.dtype).min
    logs = torch.log_softmax(scores.masked_fill(~allowed, least), dim=-1)
    return logs.masked_fill(~allowed, least)


def masked_kl(
    log_student: torch.Tensor, log_teacher: torch.Tensor, allowed: torch.Tensor
) -> torch.Tensor:
    """KL(teacher ‖ student) of log-probabilities, summed over all allowed places."""
    return torch.nn.functional.kl_div(
        log_student.masked_fill(~allowed, 0),
        log_teacher.masked_fill(~allowed, 0),
        reduction="sum",
        log_target=True,
    )

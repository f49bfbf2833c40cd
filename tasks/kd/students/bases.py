"""Bases that carry a wide stream of states into a narrow one: a choice of channels, or a rotation.

A row x of states becomes `x @ columns / scale`. The columns are orthonormal, so `columns.T` is the
best inverse. All numbers are float64.

D width of the wide states, N width of the narrow ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.kd.errors import ShapeError
from tasks.kd.shapes import require_shape


@dataclass(frozen=True)
class Basis:
    """Orthonormal `columns` [D, N] and the `scale` that states are divided by.

    `scale` is the ratio of the root mean square of a kept direction to that of a channel. After the
    division, narrow states are as large per channel as wide ones, and a LayerNorm behind them keeps
    its gain.
    """

    columns: Tensor
    scale: float

    def narrow(self, rows: Tensor) -> Tensor:
        """Narrow states [..., N] of wide ones, or of a table of them, [..., D]."""
        return rows.double() @ self.columns / self.scale

    def lost(self, vector: Tensor) -> Tensor:
        """The part [D] of a state [D] that the basis does not keep."""
        vector = vector.double()
        return vector - self.columns @ (self.columns.T @ vector)

    def gain(self, gain: Tensor) -> Tensor:
        """A norm's gains [D] for the narrow channels [N].

        Gains form a diagonal matrix, which a rotation makes full; its diagonal is kept. The result
        is exact if all gains are equal or the columns are channels.
        """
        return self.columns.T.square() @ gain.double()


def selected(moment_DD: Tensor, channels: Tensor) -> Basis:
    """The basis of the given channels, int64 [N]. `moment_DD` is the mean of x xᵀ over states x."""
    width = len(moment_DD)
    columns = torch.eye(width, dtype=torch.float64)[:, channels]
    return Basis(columns, _scale(moment_DD, columns))


def principal(moment_DD: Tensor, width: int) -> Basis:
    """The basis of the channels' mean and the `width` - 1 foremost principal components.

    LayerNorm subtracts the mean over channels, divides, and multiplies by a gain per channel. A
    basis that allows the same again has a direction for the mean (as large for narrow states as for
    wide ones), components orthogonal to it, and columns as near as possible to the gains' channels.
    The components can be spanned by any columns; the ones used are nearest to the channels with the
    greatest share in them (orthogonal Procrustes problem). At full width they are the channels.

    SliceGPT (arXiv:2401.15024, section 3) rotates each layer by its own components. It can, since
    it puts a matrix into every residual connection and folds the gains into the matrices behind.
    Our student is a plain library encoder, whose residual connections hold no matrix: one basis
    serves all layers.

    Raises ShapeError for more components than channels, and for fewer than 2, since a LayerNorm
    over one channel is 0.
    """
    have = len(moment_DD)
    require_shape("second moment", moment_DD, (have, have))
    if not 2 <= width <= have:
        raise ShapeError(
            "states have no such number of principal components",
            expected=f"2 to {have}",
            found=width,
        )
    if width == have:
        return Basis(torch.eye(width, dtype=torch.float64), 1.0)
    wide, narrow = _centred(have), _centred(width)
    foremost = torch.linalg.eigh(wide.T @ moment_DD.double() @ wide).eigenvectors
    components = wide @ foremost.flip(1)[:, : width - 1]
    nearest = components.square().sum(1).topk(width).indices.sort().values
    left, _, right = torch.linalg.svd(narrow.T @ components[nearest])
    mean = torch.full((have, width), (have * width) ** -0.5, dtype=torch.float64)
    columns = mean + components @ (left @ right).T @ narrow.T
    return Basis(columns, _scale(moment_DD, columns))


def _scale(moment_DD: Tensor, columns: Tensor) -> float:
    """The ratio of the root mean squares about the channels' mean, narrow states to wide ones."""
    kept = columns.T @ moment_DD.double() @ columns
    return float((_spread(kept) / _spread(moment_DD.double())).sqrt())


def _spread(moment_DD: Tensor) -> Tensor:
    width = len(moment_DD)
    return (moment_DD.diagonal().sum() - moment_DD.sum() / width) / width


def _centred(width: int) -> Tensor:
    """Orthonormal columns [D, D - 1] that are orthogonal to the mean over channels (Helmert's)."""
    columns = torch.ones(width, width - 1, dtype=torch.float64).triu()
    below = torch.arange(1, width, dtype=torch.float64)
    columns[torch.arange(1, width), torch.arange(width - 1)] = -below
    return columns / (below * (below + 1)).sqrt()

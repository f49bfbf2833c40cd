"""Bases that a wide stream of states is carried into a narrow one by: some channels, or a rotation.

A narrow state is `x @ columns / scale`, of rows x. The columns are orthonormal, so that `columns.T`
undoes what of it can be undone. All in float64.

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
    """Orthonormal `columns` [D, N] and the number that states are divided by.

    `scale` is the ratio of the root mean square of a kept direction to that of a channel. Divided
    by it, narrow states are as large per channel as the wide ones, and a LayerNorm after them needs
    the gain that it had.
    """

    columns: Tensor
    scale: float

    def narrow(self, rows: Tensor) -> Tensor:
        """States, or a table of them, [..., D] as [..., N]."""
        return rows.double() @ self.columns / self.scale

    def lost(self, vector: Tensor) -> Tensor:
        """What of a state [D] is not kept, [D]."""
        vector = vector.double()
        return vector - self.columns @ (self.columns.T @ vector)

    def gain(self, gain: Tensor) -> Tensor:
        """A norm's gains [D] for the narrow channels [N].

        A gain per channel is a diagonal matrix, which after a rotation is none; its diagonal is
        kept. Exact where all gains are equal, or the columns are channels.
        """
        return self.columns.T.square() @ gain.double()


def selected(moment_DD: Tensor, channels: Tensor) -> Basis:
    """The basis of some channels, int64 [N]. `moment_DD` is the states' mean of x xᵀ."""
    width = len(moment_DD)
    columns = torch.eye(width, dtype=torch.float64)[:, channels]
    return Basis(columns, _scale(moment_DD, columns))


def principal(moment_DD: Tensor, width: int) -> Basis:
    """The basis of the `width` - 1 foremost principal components, and of the channels' mean.

    LayerNorm takes the mean over channels away, divides, and multiplies by a gain per channel. A
    basis in which that can be done again has a direction for the mean (as wide for narrow states as
    for wide ones), components that are orthogonal to it, and columns as near to the gains' channels
    as may be. Which columns span the components is free; those are taken that are nearest to the
    channels with the greatest share in them (orthogonal Procrustes problem). Of the full width they
    are the channels themselves.

    SliceGPT (arXiv:2401.15024, section 3) rotates each layer by its own components, and can, since
    it puts a matrix into every residual connection and folds the gains into what follows. Our
    student is an encoder as it comes from the library, whose residual connections hold no matrix:
    one basis serves all layers.

    Raises ShapeError for more components than there are channels, or fewer than 2: a LayerNorm
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
    """Root mean square, about the mean over channels, of narrow states to that of wide ones."""
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

"""How alike the layers of two models are, from their states of the same tokens.

NumPy only. N tokens, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tasks.kd.errors import ShapeError


def cka_matrix(rows: list[npt.NDArray[Any]], columns: list[npt.NDArray[Any]]) -> list[list[float]]:
    """Linear CKA, 0 to 1, of every layer in `rows` with every layer in `columns`, each [N, D].

    With X and Y centred over tokens: ||Yᵀ X||² / (||Xᵀ X|| ||Yᵀ Y||), Frobenius norms
    (Kornblith et al. 2019, arXiv 1905.00414, section 3: HSIC with linear kernels). Unchanged by
    rotation and by isotropic scaling of either side, and the widths may differ. States that do
    not vary at all have similarity 0. Raises ShapeError if the numbers of tokens differ.
    """
    if len({len(states) for states in (*rows, *columns)}) != 1:
        raise ShapeError(
            "layers must have states of the same tokens",
            expected="equal numbers of tokens",
            found=sorted({len(states) for states in (*rows, *columns)}),
        )
    centred_rows = [_centre(states) for states in rows]
    centred_columns = [_centre(states) for states in columns]
    own_rows = [_cross(states, states) for states in centred_rows]
    own_columns = [_cross(states, states) for states in centred_columns]
    return [
        [
            _ratio(_cross(x, y), float(np.sqrt(own_x * own_y)))
            for y, own_y in zip(centred_columns, own_columns, strict=True)
        ]
        for x, own_x in zip(centred_rows, own_rows, strict=True)
    ]


def _centre(states: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """States minus their mean over tokens, taken in float64, scaled to a mean square of 1."""
    centred = states - states.mean(axis=0, dtype=np.float64)
    size = float(np.sqrt(np.mean(centred**2, dtype=np.float64)))
    scaled: npt.NDArray[Any] = (centred / size if size > 0 else centred).astype(states.dtype)
    return scaled


def _cross(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """||firstᵀ second||², the square of the Frobenius norm."""
    return float(np.sum((first.T @ second).astype(np.float64) ** 2))


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else 0.0

"""The levels' losses. Each is a pure function that returns a `Total`; no reduction is hidden.

- prediction: `labels` (cross-entropy), `kl` (Hinton et al., arXiv:1503.02531)
- hidden: `mse` (TinyBERT, arXiv:1909.10351, equation 8), plain or on standardised channels
"""

from tasks.kd.losses.hidden import mse
from tasks.kd.losses.prediction import kl, labels

__all__ = ["kl", "labels", "mse"]

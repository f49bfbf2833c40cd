"""The levels' losses. Each is a pure function that returns a `Total`; no reduction is hidden.

The sum is over valid elements and in float32 (in float64 if the student's tensor is); means over
channels, heads or classes are inside it. The count is known from the lengths of the examples before
anything is computed: it is what the docstring says, and the loss's row in `recipe/losses.py`.
Padding is never read.

What no recipe can name yet says so: labels there are one class per example.

Prediction: logits of examples
- `labels`: cross-entropy with labels
- `kl`: soft targets at a temperature (Hinton et al., arXiv:1503.02531)
- `reverse_kl`: the other way round (MiniLLM, arXiv:2306.08543)
- `jsd`: generalised Jensen-Shannon divergence (GKD, arXiv:2306.13649)
- `dkd`: decoupled into target and rest (arXiv:2203.08679)
- `dist`: correlation between classes (DIST, arXiv:2205.10536)
- `logits_mse`: squared difference of logits (Ba and Caruana, arXiv:1312.6184)
- `bce`, `bce_kl`: several labels per example, against labels and the teacher (no recipe yet)
- `regression`: squared error of scores (no recipe yet)

Tokens: logits of tokens and spans (no recipe yet)
- `token_labels`, `token_kl`: a class per token (DistilBERT, arXiv:1910.01108)
- `span_labels`, `span_kl`: where a span starts and ends (BERT, arXiv:1810.04805)

Hidden
- `mse`: plain or on standardised channels (TinyBERT, arXiv:1909.10351, equation 8)
- `cosine`: direction alone (DistilBERT, arXiv:1910.01108)
- `layer_norm_mse`: feature map transfer (MobileBERT, arXiv:2004.02984)
- `cls_mse`: the first token, normalised or not (PKD, arXiv:1908.09355)
- `pooled_mse`: the mean of an example's tokens (RAIL-KD, arXiv:2109.10164)
- `contrastive`: against a bank of teacher vectors (CoDIR, arXiv:2009.14167)

Geometry: how the tokens of an example stand to one another
- `gram`: between two layers (FSP, Yim et al., CVPR 2017)
- `nst`: similarity of tokens (arXiv:1707.01219)
- `cka`: centred kernel alignment (Kornblith et al., arXiv:1905.00414)
- `procrustes`: up to the best rotation (arXiv:2509.25253)
- `rkd_distance`: distances between tokens (RKD, arXiv:1904.05068)
- `rkd_angle`: angles between tokens, three by three (RKD)

Attention
- `scores_mse`: scores before the softmax (TinyBERT, arXiv:1909.10351, equation 7)
- `attention_kl`: distributions (MiniLM, arXiv:2002.10957; MobileBERT, arXiv:2004.02984)

Relation
- `relation_kl`: queries, keys or values among themselves (MiniLMv2, arXiv:2012.15828; MiniLM)
"""

from collections.abc import Callable, Mapping

from tasks.kd.levels.losses import attention, geometry, hidden, prediction, relation, tokens
from tasks.kd.totals import Total

_LOSSES: tuple[Callable[..., Total], ...] = (
    prediction.labels,
    prediction.kl,
    prediction.reverse_kl,
    prediction.jsd,
    prediction.dkd,
    prediction.dist,
    prediction.logits_mse,
    prediction.bce,
    prediction.bce_kl,
    prediction.regression,
    tokens.token_labels,
    tokens.token_kl,
    tokens.span_labels,
    tokens.span_kl,
    hidden.mse,
    hidden.cosine,
    hidden.layer_norm_mse,
    hidden.cls_mse,
    hidden.pooled_mse,
    hidden.contrastive,
    geometry.gram,
    geometry.nst,
    geometry.cka,
    geometry.procrustes,
    geometry.rkd_distance,
    geometry.rkd_angle,
    attention.scores_mse,
    attention.attention_kl,
    relation.relation_kl,
)
# Every loss by its name. Tests go through this table.
FUNCTIONS: Mapping[str, Callable[..., Total]] = {loss.__name__: loss for loss in _LOSSES}

"""Write tests/golden/losses.json anew: `make goldens`. Tests only ever read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tasks.kd.digests import write_json
from tests.golden import references

GOLDENS = Path(__file__).with_name("losses.json")

HINTON = "arXiv:1503.02531, section 2"
TINYBERT = "arXiv:1909.10351, equation"
LOGITS, STATES = ["student_logits", "teacher_logits"], ["student_states", "teacher_states", "mask"]
WIDE = ["student_states", "wide_states", "mask"]
SCORES = ["student_scores", "teacher_scores", "mask"]

# Loss, what it is given (names of inputs), options, where its equation stands.
CASES: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("labels", ["student_logits", "classes"], {}, "cross-entropy, natural logarithm"),
    *(("kl", LOGITS, {"temperature": t}, HINTON) for t in (1.0, 2.0, 8.0)),
    *(("reverse_kl", LOGITS, {"temperature": t}, "arXiv:2306.08543") for t in (1.0, 4.0)),
    *(
        ("jsd", LOGITS, {"beta": beta, "temperature": 2.0}, "arXiv:2306.13649, equation 1")
        for beta in (0.0, 0.1, 0.5, 1.0)
    ),
    *(
        (
            "dkd",
            [*LOGITS, "classes"],
            {"temperature": 4.0, "target_weight": target, "other_weight": other},
            "arXiv:2203.08679, equation 7",
        )
        for target, other in ((1.0, 0.0), (0.0, 1.0), (1.0, 8.0))
    ),
    *(("dist", LOGITS, {"temperature": t}, "arXiv:2205.10536, inter-class") for t in (1.0, 4.0)),
    ("logits_mse", LOGITS, {}, "arXiv:1312.6184, as a mean over classes"),
    ("bce", ["student_logits", "several_classes"], {}, "binary cross-entropy"),
    *(("bce_kl", LOGITS, {"temperature": t}, f"{HINTON}, of coins") for t in (1.0, 3.0)),
    ("regression", LOGITS, {}, "squared error"),
    ("token_labels", ["student_states", "token_classes", "mask"], {}, "cross-entropy"),
    ("token_kl", STATES, {"temperature": 2.0}, HINTON),
    ("span_labels", ["student_edges", "positions", "mask"], {}, "arXiv:1810.04805, section 4.2"),
    ("span_kl", ["student_edges", "teacher_edges", "mask"], {"temperature": 2.0}, HINTON),
    ("mse", STATES, {}, f"{TINYBERT} 8"),
    ("mse", [*STATES, "deviation"], {}, f"{TINYBERT} 8, channels standardised"),
    ("cosine", STATES, {}, "arXiv:1910.01108, section 3"),
    ("layer_norm_mse", STATES, {}, "arXiv:2004.02984, feature map transfer"),
    *(
        ("cls_mse", STATES, {"normalised": x}, "arXiv:1908.09355, equation 7")
        for x in (True, False)
    ),
    *(
        ("pooled_mse", STATES, {"normalised": x}, "arXiv:2109.10164, section 3")
        for x in (True, False)
    ),
    (
        "gram",
        [["student_states", "student_next"], ["teacher_states", "teacher_next"], "mask"],
        {},
        "Yim et al., CVPR 2017",
    ),
    ("nst", WIDE, {}, "arXiv:1707.01219"),
    ("cka", WIDE, {}, "arXiv:1905.00414"),
    *(("procrustes", given, {}, "Schönemann 1966; arXiv:2509.25253") for given in (STATES, WIDE)),
    ("rkd_distance", WIDE, {}, "arXiv:1904.05068, distance-wise"),
    ("rkd_angle", WIDE, {}, "arXiv:1904.05068, equation 7"),
    (
        "contrastive",
        ["student_vectors", "teacher_vectors", "bank"],
        {"temperature": 0.1},
        "arXiv:2009.14167",
    ),
    *(("scores_mse", SCORES, {"heads": heads}, f"{TINYBERT} 7") for heads in ("each", "average")),
    *(
        ("attention_kl", SCORES, {"heads": heads}, "arXiv:2002.10957")
        for heads in ("each", "average")
    ),
    *(
        (loss, ["student_scores", "scores_of_four", "mask"], {"heads": "average"}, source)
        for loss, source in (("scores_mse", f"{TINYBERT} 7"), ("attention_kl", "arXiv:2002.10957"))
    ),
    *(
        (loss, ["student_scores wide window", "teacher_scores window", "mask"], options, source)
        for loss, source in (("scores_mse", f"{TINYBERT} 7"), ("attention_kl", "arXiv:2002.10957"))
        for options in ({"heads": "each"}, {"heads": "average"})
    ),
    *(("relation_kl", WIDE, {"heads": heads}, "arXiv:2012.15828") for heads in (1, 2)),
]
# Windows can't stand in the file, since JSON has no infinity: keys further away than this are out.
WINDOWS = {"window": 1, "wide window": 2}


def draw() -> dict[str, Any]:
    """Inputs from a seed, rounded so that they stand in the file exactly."""
    random = np.random.default_rng(2026)

    def numbers(*shape: int) -> np.ndarray:
        return np.round(random.normal(size=shape) * 2, 3)

    inputs: dict[str, Any] = {"student_logits": numbers(4, 3), "teacher_logits": numbers(4, 3)}
    inputs |= {"student_states": numbers(3, 5, 4), "teacher_states": numbers(3, 5, 4)}
    inputs |= {"deviation": np.round(np.abs(numbers(4)) + 0.1, 3)}
    inputs |= {"wide_states": numbers(3, 5, 6), "student_next": numbers(3, 5, 4)}
    inputs |= {"teacher_next": numbers(3, 5, 4), "student_edges": numbers(3, 5, 2)}
    inputs |= {"teacher_edges": numbers(3, 5, 2), "student_vectors": numbers(3, 4)}
    inputs |= {"teacher_vectors": numbers(3, 4), "bank": numbers(6, 4)}
    inputs |= {"student_scores": numbers(3, 2, 5, 5), "teacher_scores": numbers(3, 2, 5, 5)}
    inputs |= {"scores_of_four": numbers(3, 4, 5, 5), "mask": [5, 2, 3]}
    inputs |= {"classes": [0, 2, 1, 2], "positions": np.array([[1, 4], [0, 0], [-100, 2]])}
    inputs |= {"several_classes": np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 1, 1]])}
    inputs |= {
        "token_classes": np.array([[-100, 1, 3, 0, -100], [-100, 2, 9, 9, 9], [-100, 3, 1, 9, 9]])
    }
    return inputs


def take(name: Any, inputs: dict[str, Any], window: Callable[[Any, int], Any]) -> Any:
    """The input of that name; the tuple of several; with its window, if it has one."""
    if isinstance(name, list):
        return tuple(take(part, inputs, window) for part in name)
    name, _, width = name.partition(" ")
    return window(inputs[name], WINDOWS[width]) if width else inputs[name]


def count(loss: str, inputs: dict[str, Any], given: list[Any]) -> int:
    """Elements by the definition of each loss: examples, real tokens or pairs of them."""
    if "mask" not in given:
        return len(inputs[given[0]])
    if loss in {"nst", "rkd_distance", "scores_mse"}:
        return sum(length**2 for length in inputs["mask"])
    if loss == "rkd_angle":
        return sum(length**3 for length in inputs["mask"])
    whole = {"span_labels", "span_kl", "cls_mse", "pooled_mse", "gram", "cka"}
    return len(inputs["mask"]) if loss in whole else sum(inputs["mask"])


def main() -> None:
    """Draw the inputs, work out the sums, write both."""
    inputs = draw()
    losses: dict[str, list[dict[str, Any]]] = {}
    for loss, given, options, source in CASES:
        values = [take(name, inputs, references.windowed) for name in given]
        losses.setdefault(loss, []).append(
            {
                "given": given,
                "options": options,
                "sum": getattr(references, loss)(*values, **options),
                "count": count(loss, inputs, given),
                "source": source,
            }
        )
    written = {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
    }
    write_json(GOLDENS, {"inputs": written, "losses": losses})
    print(f"wrote {GOLDENS.name}; look at the difference before you commit it")


if __name__ == "__main__":
    main()

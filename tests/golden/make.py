"""Write tests/golden/losses.json anew: `make goldens`. Tests only ever read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.kd.digests import write_json
from tests.golden import references

GOLDENS = Path(__file__).with_name("losses.json")


def main() -> None:
    """Inputs from a seed, rounded so that they stand in the file exactly, and the values."""
    random = np.random.default_rng(2026)

    def numbers(*shape: int) -> np.ndarray:
        return np.round(random.normal(size=shape) * 2, 3)

    student, teacher, classes = numbers(4, 3), numbers(4, 3), [0, 2, 1, 2]
    own, theirs, lengths = numbers(3, 5, 4), numbers(3, 5, 4), [5, 2, 3]
    deviation = np.round(np.abs(numbers(4)) + 0.1, 3)
    write_json(
        GOLDENS,
        {
            "labels": {
                "student": student.tolist(),
                "classes": classes,
                "sum": references.labels(student, classes),
                "source": "cross-entropy, natural logarithm",
            },
            "kl": [
                {
                    "student": student.tolist(),
                    "teacher": teacher.tolist(),
                    "temperature": temperature,
                    "sum": references.kl(student, teacher, temperature),
                    "source": "arXiv:1503.02531, section 2",
                }
                for temperature in (1.0, 2.0, 8.0)
            ],
            "mse": [
                {
                    "student": own.tolist(),
                    "teacher": theirs.tolist(),
                    "lengths": lengths,
                    "deviation": used.tolist() if used is not None else None,
                    "sum": references.mse(own, theirs, lengths, used),
                    "source": "arXiv:1909.10351, equation 8",
                }
                for used in (None, deviation)
            ],
        },
    )
    print(f"wrote {GOLDENS.name}; look at the difference before you commit it")


if __name__ == "__main__":
    main()

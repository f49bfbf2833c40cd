"""TextBrewer 0.2.1, fetched aside and run in a process of its own: never installed.

`python -m bench.textbrewer_loop '<spec>'` with its sources on PYTHONPATH, started by `Rival`.
It trains as TextBrewer's README and its MNLI example do: `GeneralDistiller.train` over a shuffled
DataLoader, AdamW as torch makes it, hidden states matched pair by pair, `kd_loss` on the logits.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from types import ModuleType, TracebackType
from typing import Any, Self

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from bench.material import ROOT, Material
from bench.steps import base_shaped
from tasks.kd.data.examples.padding import pad
from tasks.kd.data.examples.prepared import Split
from tasks.kd.digests import sha256_file
from tasks.kd.encoders.shape import depth, width
from tasks.kd.recipe.levels import HiddenLevel, Level
from tasks.kd.recipe.matching import match
from tasks.kd.recipe.student import Student
from tasks.kd.students.building import build_student

VERSION = "0.2.1"
SHA256 = "5f6f29dc4fa6089bc0922a8fd7abcd6874b939db72a39da8727f092b7727120e"
WARM_UP_STEPS = 2
_RATE = 1e-5

Example = tuple[torch.Tensor, int]


@dataclass(frozen=True)
class Spec:
    """What the child trains: the bench's material by name, so many texts, the matched layers."""

    material: str
    texts: int
    base_shaped: bool
    student: dict[str, Any]
    pairs: tuple[tuple[int, int], ...]
    temperature: float
    batch_examples: int


# --- fetching ------------------------------------------------------------------------------------


def fetch(folder: Path) -> Path:
    """The folder with the package, from its pinned source distribution; fetched once."""
    home = folder / f"textbrewer-{VERSION}"
    archive = home / f"textbrewer-{VERSION}.tar.gz"
    if not archive.exists():
        home.mkdir(parents=True, exist_ok=True)
        _download(home)
    return unpack(archive, home)


def unpack(archive: Path, home: Path) -> Path:
    """Check the digest, then unpack the package's sources; none of it is run."""
    if (digest := sha256_file(archive)) != SHA256:
        raise SystemExit(f"{archive.name} is not the one that is pinned: sha256 {digest}")
    with tarfile.open(archive) as opened:
        opened.extractall(home, filter="data")
    return home / f"textbrewer-{VERSION}" / "src"


def _download(home: Path) -> None:
    """With pip, which compares the digest before it looks at what it got."""
    with TemporaryDirectory() as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"textbrewer=={VERSION} --hash=sha256:{SHA256}\n", encoding="utf-8")
        program = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check"]
        program += ["--no-deps", "--no-binary", ":all:", "--require-hashes"]
        program += ["-r", str(wanted), "-d", str(home)]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"pip can't fetch textbrewer {VERSION}:\n{done.stderr.strip()}")


# --- in the bench --------------------------------------------------------------------------------


class Rival:
    """The child, which waits between its turns."""

    def __init__(self, spec: Spec, sources: Path) -> None:
        self._said = TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self._child = subprocess.Popen(
            [sys.executable, "-m", "bench.textbrewer_loop", json.dumps(asdict(spec))],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(sources), str(ROOT)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._said):
            if pipe is not None:
                pipe.close()

    def examples_per_s(self, steps: int, seed: int) -> float:
        """Of so many steps after the warm-up."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps({"steps": steps, "seed": seed}) + "\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._said.seek(0)
            raise SystemExit(f"the child that runs TextBrewer ended:\n{self._said.read()}")
        return float(json.loads(answer))


def pairs_of(
    levels: Sequence[Level], student_layers: int, teacher_layers: int
) -> tuple[tuple[int, int], ...]:
    """The layers that the hidden level compares, student's first."""
    (level,) = (level for level in levels if isinstance(level, HiddenLevel))
    return tuple(match(level, student_layers, teacher_layers).fixed)


# --- in the child --------------------------------------------------------------------------------


class Texts(Dataset[Example]):
    """Token ids and label of each text."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, row: int) -> Example:
        return torch.from_numpy(self._split.input_ids[row]), int(self._split.labels[row])


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, torch.Tensor]:
    """A batch as the models take it, padded to its longest text."""
    ids_BT, mask_BT = pad([ids.numpy() for ids, _ in examples], pad_id)
    labels_B = torch.tensor([label for _, label in examples])
    return {"input_ids": ids_BT, "attention_mask": mask_BT.long(), "labels": labels_B}


def adapt(batch: Mapping[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
    """What TextBrewer asks of an adaptor: where the parts of its losses are."""
    return {
        "logits": outputs.logits,
        "hidden": outputs.hidden_states,
        "inputs_mask": batch["attention_mask"],
        "losses": outputs.loss,
    }


def matches_of(
    pairs: Sequence[tuple[int, int]], student_width: int, teacher_width: int
) -> list[dict[str, Any]]:
    """Its `intermediate_matches`: mean squared error, projected where the widths differ."""
    is_projected = student_width != teacher_width
    return [
        {"layer_S": own, "layer_T": theirs, "feature": "hidden", "loss": "hidden_mse", "weight": 1}
        | ({"proj": ["linear", student_width, teacher_width]} if is_projected else {})
        for own, theirs in pairs
    ]


class Clock:
    """Sees every batch on its way into a step, and knows when it did."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Leave the batch as it is."""
        self._times.append(time.perf_counter())
        return batch

    def examples_per_s(self, batch_examples: int) -> float:
        """From one batch to the next: assembling, the step and what it writes are all in it."""
        times = self._times[WARM_UP_STEPS:]
        return batch_examples * (len(times) - 1) / (times[-1] - times[0])


class _Distillation:
    """A teacher, a student, and TextBrewer between them."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        # By name: it is no package of this project's, and is found in the bench's own folder.
        textbrewer: Any = importlib.import_module("textbrewer")
        material = Material(spec.material)
        self._spec, data = spec, material.short
        self._texts, self._pad_id = Texts(data.sample(spec.texts)), data.pad_id
        teacher = base_shaped(material.teacher) if spec.base_shaped else material.teacher
        student = build_student(
            Student.model_validate_json(json.dumps(spec.student)), teacher, seed=0
        )
        self._student = student
        self._distiller = textbrewer.GeneralDistiller(
            train_config=textbrewer.TrainingConfig(device="cpu", output_dir=str(folder)),
            distill_config=textbrewer.DistillationConfig(
                temperature=spec.temperature,
                hard_label_weight=1,
                kd_loss_weight=1,
                intermediate_matches=matches_of(spec.pairs, width(student), width(teacher)),
            ),
            model_T=teacher,
            model_S=student,
            adaptor_T=adapt,
            adaptor_S=adapt,
        )
        assert max(theirs for _, theirs in spec.pairs) <= depth(teacher)

    def examples_per_s(self, steps: int, seed: int) -> float:
        """An epoch of so many steps and those that warm up."""
        size, clock = self._spec.batch_examples, Clock()
        drawn = (WARM_UP_STEPS + 1 + steps) * size
        random = torch.Generator().manual_seed(seed)
        loader = DataLoader(
            self._texts,
            batch_size=size,
            sampler=RandomSampler(self._texts, num_samples=drawn, generator=random),
            drop_last=True,
            collate_fn=lambda examples: collate(examples, self._pad_id),
        )
        optimizer = torch.optim.AdamW(self._student.parameters(), lr=_RATE)
        with self._distiller:
            self._distiller.train(
                optimizer,
                loader,
                num_epochs=1,
                batch_postprocessor=clock,
                output_hidden_states=True,
            )
        return clock.examples_per_s(size)


def _without_tensorboard() -> None:
    """TextBrewer imports a SummaryWriter even where it logs nothing (`log_dir=None`, as here)."""
    module: Any = ModuleType("tensorboardX")
    module.SummaryWriter = None  # never made without a log_dir
    sys.modules["tensorboardX"] = module


def _serve(spec: Spec) -> None:
    """Answer requests, one a line, until nobody asks."""
    answers, sys.stdout = sys.stdout, sys.stderr
    _without_tensorboard()
    with TemporaryDirectory(prefix="textbrewer-") as folder:
        distillation = _Distillation(spec, Path(folder))
        for line in sys.stdin:
            print(
                json.dumps(distillation.examples_per_s(**json.loads(line))),
                file=answers,
                flush=True,
            )


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    asked["pairs"] = tuple(tuple(pair) for pair in asked["pairs"])
    _serve(Spec(**asked))

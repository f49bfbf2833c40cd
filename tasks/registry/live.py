"""Curves of a running training, in an MLflow run of their own.

A thread of the flow reads them from the file that the training writes, so the training neither
knows of it nor waits for it. A failure here is reported once and ends the watching, not the
training. The run that counts is written from finished files afterwards.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.registry.store import Store
from tasks.registry.tracking import numbers_of

TAG = "stillhouse.live"
_BATCH = 500


@contextmanager
def follow(
    store: Store,
    experiment: str,
    name: str,
    find: Callable[[], Path | None],
    *,
    every_s: float,
    say: Callable[[str], None],
) -> Iterator[None]:
    """While open, send new lines of the file that `find` returns, every `every_s` seconds.

    `name` names the stage and recipe. `say` gets a message with the run's id, or why there is none.
    """
    follower = _Follower(store, experiment, name, find, say)
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(every_s) and follower.send():
            pass

    thread = threading.Thread(target=work, name="live curves", daemon=True)
    thread.start()
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        ended.set()
        thread.join(timeout=every_s + 30)
        if not thread.is_alive():
            follower.end(status)


class _Follower:
    """A position in the training's file, and the run that its lines go to."""

    def __init__(
        self,
        store: Store,
        experiment: str,
        name: str,
        find: Callable[[], Path | None],
        say: Callable[[str], None],
    ) -> None:
        self._store, self._experiment, self._name = store, experiment, name
        self._find, self._say = find, say
        self._run_id: str | None = None
        self._read = 0
        self._is_broken = False

    def send(self) -> bool:
        """Send new lines; False after a failure."""
        # Any error counts, since a training is worth more than its curves.
        try:
            if lines := self._new_lines():
                self._log(lines)
        except Exception as error:  # noqa: BLE001
            self._is_broken = True
            self._say(f"live curves stop here, the training goes on: {error}")
        return not self._is_broken

    def end(self, status: str) -> None:
        """Send the rest and close the run."""
        if self._is_broken or not self.send() or self._run_id is None:
            return
        try:
            self._store.client.set_terminated(self._run_id, status)
        except Exception as error:  # noqa: BLE001
            self._say(f"the run of live curves was not closed: {error}")

    def _new_lines(self) -> list[str]:
        """Whole lines that were not read yet. A file that got shorter is read from its start.

        A resumed training cuts its file.
        """
        path = self._find()
        if path is None or not path.exists():
            return []
        with path.open("rb") as file:
            if file.seek(0, 2) < self._read:
                self._read = 0
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode("utf-8").splitlines()

    def _log(self, lines: list[str]) -> None:
        from mlflow.entities import Metric

        from tasks.kd.documents.history import parse_record

        with self._store.speak(self._name):
            client = self._store.client
            if self._run_id is None:
                experiment = self._store.ensure_experiment(self._experiment)
                run = client.create_run(experiment, run_name=f"{self._name}, live", tags={TAG: "1"})
                self._run_id = str(run.info.run_id)
                self._say(f"live curves: MLflow run {self._run_id} of {self._experiment}")
            now = int(time.time() * 1000)
            metrics = [
                Metric(name, value, now, step)
                for line in lines
                for step, name, value in numbers_of(parse_record(line, self._name))
            ]
            for start in range(0, len(metrics), _BATCH):
                client.log_batch(self._run_id, metrics=metrics[start : start + _BATCH])

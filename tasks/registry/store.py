"""Where MLflow is, how it is asked quietly and within bounded time, and its faults in our words."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.kd.errors import KDError, RegistryError, TransientError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

# Ours unless the user said otherwise. MLflow reads them when it is imported or at each call. Its
# own defaults phone home, print, and retry a dead server for minutes.
_DEFAULTS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",
}
_CHATTY = ("mlflow", "sqlalchemy", "alembic")
_TRANSIENT_CODES = {"REQUEST_LIMIT_EXCEEDED", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED"}


def open_store(root: Path) -> Store:
    """The store of a checkout: `MLFLOW_TRACKING_URI`, or SQLite in `<root>/.mlflow`.

    `MLFLOW_REGISTRY_URI` keeps models elsewhere than runs.
    """
    root = root.resolve()
    given = os.environ.get("MLFLOW_TRACKING_URI")
    uri = given or f"sqlite:///{root / '.mlflow' / 'mlflow.db'}"
    return Store(root, uri, os.environ.get("MLFLOW_REGISTRY_URI") or uri, local=not given)


@dataclass(frozen=True)
class Store:
    """MLflow as one checkout sees it; `local` is our own SQLite file.

    `uri` is where runs and files are; `registry_uri` where models are: there too, or elsewhere.
    """

    root: Path
    uri: str
    registry_uri: str
    local: bool

    @property
    def folder(self) -> Path:
        """Where our own database, artifacts and lock file are."""
        return self.root / ".mlflow"

    @property
    def shown_uri(self) -> str:
        """The URI without a password, for messages."""
        return _hide_password(self.uri)

    @property
    def shown_registry_uri(self) -> str:
        """The registry's URI without a password, for messages."""
        return _hide_password(self.registry_uri)

    @property
    def divided(self) -> bool:
        """Whether models are kept elsewhere than runs."""
        return self.registry_uri != self.uri

    @property
    def exists(self) -> bool:
        """False if it is our own and nothing was written yet."""
        return not self.local or self.divided or (self.folder / "mlflow.db").exists()

    @cached_property
    def client(self) -> MlflowClient:
        """The one client. Making it creates our own database if it is not there yet."""
        import_quietly()
        from mlflow import MlflowClient

        if self.local:
            self._ensure_database()
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.registry_uri)

    def ensure_experiment(self, name: str) -> str:
        """The id of an experiment, created if need be."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = (self.folder / "artifacts" / name).as_uri() if self.local else None
            return str(self.client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage != "active":
            raise RegistryError(
                "The experiment was deleted in MLflow",
                where=name,
                advice="Restore it, or name another in the recipe's section register.",
                mend=f"mlflow experiments restore --experiment-id {found.experiment_id}",
            )
        return str(found.experiment_id)

    @contextlib.contextmanager
    def speak(self, recipe: str | None = None) -> Iterator[None]:
        """Turn whatever MLflow raises inside into one of our errors, with one plain message."""
        import_quietly()
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError, SQLAlchemyError

        try:
            yield
        except MlflowException as error:
            raise self._explain(error, recipe) from error
        except (SQLAlchemyError, ModuleNotFoundError) as error:  # a database of the user's own
            transient = isinstance(error, OperationalError)
            first = str(error).splitlines()[0]
            raise self._report(first, recipe, transient=transient) from error
        except OSError as error:  # disks, sockets; every fault of `requests` is one too
            transient = isinstance(error, ConnectionError | TimeoutError) or type(
                error
            ).__module__.startswith("requests")
            raise self._report(str(error), recipe, transient=transient) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Let one writer of this checkout at a time pass; the kernel frees it with the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def as_default(self) -> Iterator[None]:
        """Be the store that MLflow falls back to, for the calls that take none."""
        before = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        try:
            yield
        finally:
            if before is None:
                del os.environ["MLFLOW_TRACKING_URI"]
            else:
                os.environ["MLFLOW_TRACKING_URI"] = before

    def _explain(self, error: MlflowException, recipe: str | None) -> KDError:
        message = str(error.message).strip().splitlines()[0]
        unreachable = message.startswith("API request to") and "failed with exception" in message
        timed_out = "Timeout" in message or "timed out" in message
        code = str(error.error_code)
        silent = unreachable or timed_out
        transient = silent or code in _TRANSIENT_CODES
        return self._report(message, recipe, transient=transient, silent=silent)

    def _report(
        self, message: str, recipe: str | None, *, transient: bool, silent: bool = False
    ) -> KDError:
        kind = TransientError if transient else RegistryError
        where = self._find_place(message)
        for uri in (self.uri, self.registry_uri):  # libraries repeat it, password and all
            message = message.replace(uri, _hide_password(uri))
        # Of a silent server the message is urllib3's account of its retries.
        what = "MLflow does not answer" if silent else f"MLflow refused: {message}"
        if recipe is None:
            return kind(what, where=where)
        return kind(
            what,
            where=where,
            advice="The artifacts stay as they are; the same command registers them without "
            "training again.",
            mend=f"stillhouse run {recipe}",
        )

    def _find_place(self, message: str) -> str:
        """The one of the two URIs that a fault is of, or both where it does not say."""
        if not self.divided:
            return self.shown_uri
        named = [uri for uri in (self.uri, self.registry_uri) if uri.rstrip("/") in message]
        if named:
            return _hide_password(max(named, key=len))  # one may be the beginning of the other
        return f"{self.shown_uri}, registry {self.shown_registry_uri}"

    def _ensure_database(self) -> None:
        """Create the database under another name first: a kill leaves none, never half of one."""
        database = self.folder / "mlflow.db"
        self.folder.mkdir(parents=True, exist_ok=True)
        if database.exists():
            _check_database(database)
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        temporary = self.folder / f"mlflow.db.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        artifacts = (self.folder / "artifacts").as_uri()
        made = SqlAlchemyStore(f"sqlite:///{temporary}", artifacts)  # type: ignore[no-untyped-call]
        made.engine.dispose()
        # A link, not a rename: it fails if another process was first, whose database then stays.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, database)
        temporary.unlink()


def _hide_password(uri: str) -> str:
    return re.sub(r"//[^/]*@", "//", uri)


def import_quietly() -> None:
    """Import mlflow with our settings, and keep what it warns its developers of from our users."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for module in _CHATTY:  # the same filter again replaces itself
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")
    import mlflow.pyfunc  # noqa: F401 (for what it does)

    if "MLFLOW_LOGGING_LEVEL" in os.environ:
        logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())


def _check_database(database: Path) -> None:
    """Find a broken file at once; MLflow would try again for a minute and a half."""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as link:
            link.execute("select version_num from alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise TransientError("MLflow's database is in use", where=database) from error
        raise _broken(database, error) from error
    except sqlite3.DatabaseError as error:
        raise _broken(database, error) from error


def _broken(database: Path, error: sqlite3.Error) -> RegistryError:
    return RegistryError(
        f"MLflow's database can't be read ({error})",
        where=database,
        advice="Bring back a copy of it, or move it away to begin with an empty one.",
    )

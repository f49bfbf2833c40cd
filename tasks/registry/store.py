"""Where MLflow is; calls to it, quiet and bounded in time; its errors turned into ours."""

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

# Our defaults, unless the user set others. MLflow reads them at import or at each call. Its own
# defaults phone home, print, and retry a dead server for minutes.
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
    """MLflow as one checkout sees it; `local` says whether it is our own SQLite file.

    `uri` is the place of runs and files, `registry_uri` that of models, which may be the same.
    """

    root: Path
    uri: str
    registry_uri: str
    local: bool

    @property
    def folder(self) -> Path:
        """The folder of our own database, artifacts and lock file."""
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
        """False if the store is our own and nothing was written yet."""
        return not self.local or self.divided or (self.folder / "mlflow.db").exists()

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's client. The first access creates our own database if it is missing."""
        import_quietly()
        from mlflow import MlflowClient

        if self.local:
            self._ensure_database()
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.registry_uri)

    def ensure_experiment(self, name: str) -> str:
        """The id of an experiment, created if missing. Raises RegistryError if it was deleted."""
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            location = (self.folder / "artifacts" / name).as_uri() if self.local else None
            return str(self.client.create_experiment(name, artifact_location=location))
        if experiment.lifecycle_stage != "active":
            raise RegistryError(
                "The experiment was deleted in MLflow",
                where=name,
                advice="Restore it, or name another in the recipe's section register.",
                mend=f"mlflow experiments restore --experiment-id {experiment.experiment_id}",
            )
        return str(experiment.experiment_id)

    @contextlib.contextmanager
    def speak(self, recipe: str | None = None) -> Iterator[None]:
        """Turn any MLflow error inside into a RegistryError or TransientError with one message."""
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
        """Admit one writer of this checkout at a time. A dead process frees the lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def as_default(self) -> Iterator[None]:
        """Make this MLflow's default store while open, for calls that take none."""
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
        for uri in (self.uri, self.registry_uri):  # libraries repeat it with its password
            message = message.replace(uri, _hide_password(uri))
        # A silent server's message is urllib3's account of its retries.
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
        """The URI that an error's message names, or both if it names none."""
        if not self.divided:
            return self.shown_uri
        named = [uri for uri in (self.uri, self.registry_uri) if uri.rstrip("/") in message]
        if named:
            return _hide_password(max(named, key=len))  # one may be the beginning of the other
        return f"{self.shown_uri}, registry {self.shown_registry_uri}"

    def _ensure_database(self) -> None:
        """Create our database under another name first, so that a kill never leaves half of one."""
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
        # A link fails if another process was first; a rename would replace that one's database.
        with contextlib.suppress(FileExistsError):
            os.link(temporary, database)
        temporary.unlink()


def _hide_password(uri: str) -> str:
    return re.sub(r"//[^/]*@", "//", uri)


def import_quietly() -> None:
    """Import mlflow with our settings, and hide its warnings to developers from our users."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for module in _CHATTY:  # a repeated filter replaces itself
        warnings.filterwarnings("ignore", module=rf"{module}(\..*)?$")
    import mlflow.pyfunc  # noqa: F401 (for what it does)

    if "MLFLOW_LOGGING_LEVEL" in os.environ:
        logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())


def _check_database(database: Path) -> None:
    """Raise for a broken or locked file at once; MLflow would retry for a minute and a half."""
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

"""Every error that stillhouse raises on purpose.

    KDError
    ├── ParamsError            a recipe that cannot be run                    exit 2
    ├── DataError              a source or its content is not as declared     exit 2
    ├── ShapeError             tensors or models that do not fit together     exit 2
    ├── CacheError             the teacher cache
    │   ├── CacheFormatError       not a cache that this version reads
    │   ├── CacheCorruptError      bytes that differ from their checksum
    │   ├── CacheStaleError        made from another teacher, data or setting
    │   ├── CacheIncompleteError   a shard or stream is not there
    │   └── CacheQuotaError        would not fit the quota or the disk        exit 2
    ├── NonFiniteLossError     NaN or infinity where a number must be
    ├── ExportError            the exported student differs from the trained one
    ├── RegistryError          MLflow refused or contradicts itself
    ├── StageError             a stage ended without saying why, or its out can't be kept
    └── TransientError         worth another try: network, lock, busy server

A message reads `what is wrong: where. Expected X, found Y. Run: the command that mends it.`
"""

from __future__ import annotations


class KDError(Exception):
    """The root of the tree. `exit_code` is a program's: 2 for a user's fault, else 1.

    >>> print(DataError("an empty file", where="train.csv", expected="a header line"))
    an empty file: train.csv. Expected a header line.
    """

    exit_code = 1
    transient = False

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        advice: str | None = None,
        mend: str | None = None,
    ) -> None:
        is_list = "\n" in what  # a list keeps its last line's end, which may be a command
        message = what if is_list else what.rstrip(".")
        if where is not None:
            message += f": {where}"
        if not is_list:
            message += "."
        details = [
            f"{label} {value}"
            for label, value in (("expected", expected), ("found", found))
            if value is not None
        ]
        if details:
            sentence = ", ".join(details)
            message += f" {sentence[0].upper()}{sentence[1:]}."
        if advice is not None:
            message += f" {advice}"
        if mend is not None:
            message += f" Run: {mend}"
        super().__init__(message)


class ParamsError(KDError):
    """A recipe that cannot be run; the message lists every fault."""

    exit_code = 2


class DataError(KDError):
    """A source, or what is in it, is not as the recipe says."""

    exit_code = 2


class ShapeError(KDError):
    """Tensors or models that do not fit together."""

    exit_code = 2


class CacheError(KDError):
    """The teacher cache can't be used as it is."""


class CacheFormatError(CacheError):
    """Not a cache, or one of a version that this program does not read."""


class CacheCorruptError(CacheError):
    """Bytes on disk differ from the manifest's checksum."""


class CacheStaleError(CacheError):
    """The cache was made from another teacher, other data or other settings."""


class CacheIncompleteError(CacheError):
    """A shard, a record or a stream is not there."""


class CacheQuotaError(CacheError):
    """The cache would not fit the recipe's quota or the free disk."""

    exit_code = 2


class NonFiniteLossError(KDError):
    """NaN or infinity where a number must be."""


class ExportError(KDError):
    """The exported student does not do what the trained one does."""


class RegistryError(KDError):
    """MLflow refused, or what it holds contradicts the artifacts."""


class StageError(KDError):
    """A stage's process ended without an error that it could name, or its out can't be kept."""


class TransientError(KDError):
    """A fault that another try may not meet: network, lock, busy server."""

    transient = True


def from_record(record: dict[str, object]) -> KDError:
    """The error that a stage or a rank wrote as `{type, message}`; StageError for other types."""
    error = (find_kind(str(record.get("type"))) or StageError)("")
    error.args = (str(record.get("message")),)
    return error


def find_kind(name: str) -> type[KDError] | None:
    """The tree's class with this name; None if there is none."""
    return next((kind for kind in _tree(KDError) if kind.__name__ == name), None)


def _tree(root: type[KDError]) -> list[type[KDError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]

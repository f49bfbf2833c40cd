"""Imports are brought to what their sources hold, whatever a server says of them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.kd.errors import (
    TransientError,
)
from tasks.versioning.asking import git_state
from tasks.versioning.imports import is_vague
from tasks.versioning.telling import pull, update
from tests.makers.dvc_repository import (
    ROOT,
    build,
    dvc,
    ignore,
    in_shell,
    reasons,
    write_recipes,
)

# DVC asks pygtrie for something that pygtrie wants to withdraw.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon:DeprecationWarning")


def test_an_import_is_updated_to_what_its_source_holds_and_others_are_left(
    fresh: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source.csv"
    source.write_text("text,label\nhello,0\n")
    (fresh / "sources").mkdir(exist_ok=True)
    dvc(fresh, "import-url", "-q", str(source), "sources/imported.csv")
    write_recipes(fresh, tiny="sources/imported.csv")
    source.write_text("text,label\nbye,1\n")
    pull(fresh, "tiny", on_line=ignore, on_progress=ignore)
    assert "hello" in (fresh / "sources" / "imported.csv").read_text()
    assert update(fresh, "tiny", on_line=ignore, on_progress=ignore) is True
    assert "bye" in (fresh / "sources" / "imported.csv").read_text()
    source.unlink()
    with pytest.raises(TransientError, match="dvc update did not succeed"):
        update(fresh, "tiny", on_line=ignore, on_progress=ignore)


def test_an_import_into_data_is_seen_and_updated(fresh: Path, tmp_path: Path) -> None:
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, fresh / name)
    source = tmp_path / "source.csv"
    source.write_text("text,label\nhello,0\n")
    (fresh / "data" / "mails").mkdir(parents=True)
    dvc(fresh, "import-url", "-q", str(source), "data/mails/train.csv")
    write_recipes(fresh, tiny="data/mails/train.csv")
    source.write_text("text,label\nbye,1\n")
    assert update(fresh, "tiny", on_line=ignore, on_progress=ignore) is True
    assert "bye" in (fresh / "data" / "mails" / "train.csv").read_text()


class Source(ThreadingHTTPServer):
    """Serves `content` at any path, with or without length, ETag and date."""

    daemon_threads = True
    content = b""
    headers: Sequence[str] = ()

    def head(self) -> list[tuple[str, str]]:
        given = {
            "Content-Length": str(len(self.content)),
            "ETag": f'"{hashlib.sha256(self.content).hexdigest()}"',
            "Content-MD5": base64.b64encode(hashlib.md5(self.content).digest()).decode(),
            "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT",
        }
        return [(name, given[name]) for name in self.headers]


class Answer(BaseHTTPRequestHandler):
    server: Source

    def do_HEAD(self) -> None:
        self.send_response(200)
        for name, value in self.server.head():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        with contextlib.suppress(ConnectionError):  # DVC asks for the headers alone so, too
            self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is for the test."""


@pytest.fixture
def source() -> Iterator[Source]:
    with Source(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def import_from(source: Source, folder: Path, content: bytes) -> Path:
    source.content = content
    (folder / "sources").mkdir(exist_ok=True)
    address = f"http://127.0.0.1:{source.server_address[1]}/train.csv"
    dvc(folder, "import-url", "-q", address, "sources/imported.csv")
    write_recipes(folder, tiny="sources/imported.csv")
    in_shell(folder, "git", "add", "-A")
    in_shell(folder, "git", "commit", "-qm", "imported")
    return folder / "sources" / "imported.csv"


HELLO, SAME_LENGTH, LONGER = (
    b"text,label\nhello,0\n",
    b"text,label\nthere,0\n",
    b"text,label\nx" * 9,
)


@pytest.mark.parametrize(
    ("headers", "fetched"),
    [
        ((), True),  # a stream that ends when it ends
        (("Content-Length",), True),
        (("Content-Length", "Last-Modified"), True),
        (("Content-Length", "ETag"), False),
        (("Content-Length", "Content-MD5"), False),
    ],
)
def test_what_an_http_source_holds_now_arrives_whatever_its_server_says_of_it(
    fresh: Path, source: Source, headers: Sequence[str], fetched: bool
) -> None:
    source.headers = headers
    imported = import_from(source, fresh, HELLO)
    lines: list[str] = []
    for content in (SAME_LENGTH, LONGER):
        source.content = content
        assert update(fresh, "tiny", on_line=lines.append, on_progress=ignore) is True
        assert imported.read_bytes() == content
        md5 = hashlib.md5(content).hexdigest()
        assert md5 in imported.with_name("imported.csv.dvc").read_text()
    assert any("gives neither ETag nor Content-MD5" in line for line in lines) is fetched


def test_an_http_source_that_holds_the_same_leaves_everything_as_it_is(
    fresh: Path, source: Source
) -> None:
    imported = import_from(source, fresh, HELLO)
    noted = imported.with_name("imported.csv.dvc").read_bytes()
    build(fresh)
    in_shell(fresh, "git", "add", "-A")
    in_shell(fresh, "git", "commit", "-qm", "ran")
    assert update(fresh, "tiny", on_line=ignore, on_progress=ignore) is True
    assert imported.with_name("imported.csv.dvc").read_bytes() == noted
    assert reasons(fresh) == {}
    assert git_state(fresh)[1] is False


@pytest.mark.parametrize("headers", [(), ("Content-Length", "ETag")])
def test_a_source_that_is_down_costs_neither_the_data_nor_what_is_noted_of_it(
    fresh: Path, source: Source, headers: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source.headers = headers
    imported = import_from(source, fresh, HELLO)
    noted = imported.with_name("imported.csv.dvc").read_bytes()
    monkeypatch.setattr(Answer, "do_HEAD", lambda self: self.send_error(404))
    monkeypatch.setattr(Answer, "do_GET", lambda self: self.send_error(404))
    with pytest.raises(TransientError, match="dvc update did not succeed"):
        update(fresh, "tiny", on_line=ignore, on_progress=ignore)
    assert imported.read_bytes() == HELLO
    assert imported.with_name("imported.csv.dvc").read_bytes() == noted


def test_a_number_says_nothing_of_content_and_an_etag_does() -> None:
    assert is_vague("http", "333625191094619788368699889237623263048")
    assert is_vague("https", "12")
    assert not is_vague("https", '"33"')
    assert not is_vague("https", 'W/"33"')
    assert not is_vague("http", "XrY7u+Ae7tCTyyK7j1rNww==")
    assert not is_vague("http", None)
    assert not is_vague("local", "1234")


def test_what_is_not_imported_is_not_updated(tracked: Path) -> None:
    assert update(tracked, "tiny", on_line=ignore, on_progress=ignore) is False

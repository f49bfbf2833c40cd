"""The dialect that is proposed is the one in which a table was written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from tasks.kd.data.formats.dialects import SAMPLE_LETTERS, propose_layout
from tasks.kd.errors import DataError
from tests.makers.small_tables import COLUMNS, read, write

SENTENCES = (
    "plain words",
    "a, comma; semi | pipe",
    'he said "hi"',
    '"quoted" in front',
    "tab\tinside",
    "a line\nand more",
    "C:\\dir\\",
    'ends with "q"',
    '5" screen, 6" other',
)
Kind = Literal["csv", "tsv"]


@pytest.fixture
def table() -> pd.DataFrame:
    """Texts with all that a dialect has to guard."""
    random = np.random.default_rng(1)
    texts = [f"{random.choice(SENTENCES)} {i}".strip() for i in range(300)]
    texts += [f"{i} {random.choice(SENTENCES)}" for i in range(300)]
    return pd.DataFrame({"id": range(600), "body": texts, "kind": random.choice(list("abc"), 600)})


WRITERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all quoted": {"quoting": csv.QUOTE_ALL},
    "escaped": {"escapechar": "\\", "doublequote": False},
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("copies", [1, 40])
def test_what_pandas_wrote_is_read_as_it_was(
    table: pd.DataFrame, separator: str, writer: str, copies: int, tmp_path: Path
) -> None:
    table = pd.concat([table] * copies)
    written = table.to_csv(index=False, sep=separator, **WRITERS[writer])
    assert (len(written) > SAMPLE_LETTERS) == (copies > 1)
    kinds: tuple[Kind, ...] = ("csv", "tsv") if separator == "\t" else ("csv",)
    for kind in kinds:
        part = write(tmp_path, kind, written)
        layout, words = propose_layout(kind, [part], COLUMNS)
        assert layout.separator == separator
        assert words.endswith("; columns id, body, kind")
        rows = read(part, layout).rows
        assert rows.texts == [text.strip() for text in table["body"]]
        assert rows.labels == table["kind"].tolist()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_pandas_wrote_without_quotes_is_read_as_it_was(
    table: pd.DataFrame, separator: str, tmp_path: Path
) -> None:
    table = table[~table["body"].str.contains(r'\n|^"')]
    table = table.assign(body=table["body"].str.replace(" ", f"{separator} "))
    written = table.to_csv(index=False, sep=separator, quoting=csv.QUOTE_NONE, escapechar="\\")
    kind: Kind = "tsv" if separator == "\t" else "csv"
    part = write(tmp_path, kind, written)
    layout, _ = propose_layout(kind, [part], COLUMNS)
    assert (layout.separator, layout.quote, layout.escape) == (separator, None, "\\")
    assert read(part, layout).rows.texts == [text.strip() for text in table["body"]]


def test_what_spark_wrote_is_read_as_it_was(table: pd.DataFrame, tmp_path: Path) -> None:
    table = table[~table["body"].str.contains(r"[\n\\]")]
    lines = ["body,kind"]
    for text, kind in zip(table["body"], table["kind"], strict=True):
        is_quoted = '"' in text or "," in text
        lines.append(('"' + text.replace('"', '\\"') + '"' if is_quoted else text) + f",{kind}")
    part = write(tmp_path, "csv", "\n".join(lines))
    layout, words = propose_layout("csv", [part], COLUMNS)
    assert (layout.quote, layout.escape) == ('"', "\\")
    assert words == 'commas between cells, quotes ", inside a cell behind \\; columns body, kind'
    assert read(part, layout).rows.texts == table["body"].tolist()


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_tabs_without_quotes_are_seen(table: pd.DataFrame, kind: Kind, tmp_path: Path) -> None:
    table = table[~table["body"].str.contains(r"[\n\t]")]
    lines = [f"{text}\t{label}" for text, label in zip(table["body"], table["kind"], strict=True)]
    part = write(tmp_path, kind, "\n".join(["body\tkind", *lines]))
    layout, _ = propose_layout(kind, [part], COLUMNS)
    assert (layout.separator, layout.quote, layout.escape) == ("\t", None, None)
    assert read(part, layout).rows.texts == table["body"].tolist()


@pytest.mark.parametrize(("kind", "quote", "separator"), [("csv", '"', ","), ("tsv", None, "\t")])
def test_where_nothing_tells_it_is_the_kind_s_own(
    kind: Kind, quote: str | None, separator: str, tmp_path: Path
) -> None:
    part = write(tmp_path, kind, f"body{separator}kind\nx{separator}a\n")
    for parts in ([part], []):
        layout, _ = propose_layout(kind, parts, COLUMNS)
        assert (layout.kind, layout.quote, layout.separator) == (kind, quote, separator)
        assert (layout.escape, layout.missing, layout.skip_lines) == (None, (), 0)


def test_one_broken_row_makes_no_other_dialect(tmp_path: Path) -> None:
    part = write(tmp_path, "csv", "body,kind\n" + '"x y",a\n' * 20 + '"open,b\n' + '"x y",a\n' * 20)
    layout, _ = propose_layout("csv", [part], COLUMNS)
    assert (layout.quote, layout.escape) == ('"', None)
    with pytest.raises(DataError, match="row 21, line 22"):
        read(part, layout)


def test_columns_that_no_dialect_has_are_looked_for_in_the_likeliest(tmp_path: Path) -> None:
    part = write(tmp_path, "csv", "text;label\nx, y;a\n")
    layout, words = propose_layout("csv", [part], COLUMNS)
    assert layout.separator == ";"
    assert words.endswith("columns text, label")


def test_spellings_of_nothing_in_the_two_columns_are_proposed(tmp_path: Path) -> None:
    part = write(tmp_path, "csv", "id,body,kind\nnull,x,a\n2,y,NA\n3,None,b\n")
    layout, words = propose_layout("csv", [part], COLUMNS)
    assert layout.missing == ("NA", "None")
    assert "no value spelled NA, None" in words


def test_both_files_count(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    plain = write(tmp_path, "csv", "body;kind\nx;a\n")
    escaped = write(tmp_path / "other", "csv", 'body;kind\n"x \\"y\\"; z";a\n')
    layout, _ = propose_layout("csv", [plain, escaped], COLUMNS)
    assert (layout.separator, layout.escape) == (";", "\\")

"""A change of a YAML text is at its place, and nothing else of the text is another."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.kd.errors import ParamsError
from tasks.kd.recipe.edits import Drop, Edit, Put, Rename, Set, apply_edits, spell

PATH = Path("params/some.yaml")
TEXT = """\
# head
---
a:   # of a
  x: |
    lit
    # no comment

  # foot
  y: >-
     fold
     ed

b: &anc {x: 1,
    y: [ ]}   # tail
o: &o
  k: 1.0e-4
p: *o
q:
- name: h   # n
  rate: 1
- {name: g}
c: {"a": 1, "skip": 0}
e: {}
n:
d: {skip: 0, kind: 'it''s'}
r: {s: *o, t: }
u:
  v:
    - &v {k: 1}
    # - *none
    - *v   # last
  w:
  - x
  -
aa:
  # here
  *o
z: "x"   # eol"""

NO = '  k: null\n  l: "no"\n'


def read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


@pytest.fixture(params=["", "\ufeff", "crlf"])
def text(request: pytest.FixtureRequest) -> str:
    return TEXT.replace("\n", "\r\n") if request.param == "crlf" else request.param + TEXT


@pytest.mark.parametrize(
    ("edit", "old", "new"),
    [
        (Put((), {"form": 2}), "a:   # of a", "form: 2\na:   # of a"),
        (Put(("a",), {"k": None, "l": "no"}, "x"), "# no comment\n", f"# no comment\n{NO}"),
        (Put(("a",), {"k": 1.5}, "y"), "     ed\n", "     ed\n  k: 1.5\n"),
        (Put(("a",), {"k": 1.5}, "absent"), "     ed\n", "     ed\n  k: 1.5\n"),
        (Put(("b",), {"k": []}, "x"), "{x: 1,", "{x: 1, k: [],"),
        (Put(("b",), {"k": {}}, "y"), "[ ]}", "[ ], k: {}}"),
        (Put(("b",), {"k": True}), "{x: 1,", "{k: true, x: 1,"),
        (Put(("o",), {"k2": 0}, "k"), "  k: 1.0e-4\n", "  k: 1.0e-4\n  k2: 0\n"),
        (Put((), {"k": 0}, "p"), "p: *o\n", "p: *o\nk: 0\n"),
        (Put((), {"k": 0}, "b"), "# tail\n", "# tail\nk: 0\n"),
        (Put(("q", 0), {"k": 0}), "- name: h ", "- k: 0\n  name: h "),
        (Put(("q", 0), {"k": 0}, "rate"), "  rate: 1\n", "  rate: 1\n  k: 0\n"),
        (Put(("q", 1), {"k": 0}, "name"), "{name: g}", "{name: g, k: 0}"),
        (Put((), {"k": 0}, "q"), "{name: g}\n", "{name: g}\nk: 0\n"),
        (Put(("c",), {"k": "x"}, "a"), '"a": 1,', '"a": 1, "k": "x",'),
        (Put(("e",), {"k": "x", "l": 1}), "e: {}", "e: {k: x, l: 1}"),
        (Put((), {"k": 0}, "n"), "n:\n", "n:\nk: 0\n"),
        (Put(("r",), {"k": 0}, "s"), "s: *o,", "s: *o, k: 0,"),
        (Put(("r",), {"k": 0}, "t"), "t: }", "t:, k: 0 }"),
        (Put(("u",), {"k": 0}, "v"), "- *v   # last\n", "- *v   # last\n  k: 0\n"),
        (Put(("u",), {"k": 0}, "w"), "- x\n  -\n", "- x\n  -\n  k: 0\n"),
        (Put((), {"k": 0}, "aa"), "  *o\n", "  *o\nk: 0\n"),
        (Set(("r",), "s", 3), "s: *o", "s: 3"),
        (Put((), {"k": 0, "l": 1}, "z"), '"x"   # eol', '"x"   # eol\nk: 0\nl: 1'),
        (Rename(("q", 0), "rate", "speed"), "  rate: 1\n", "  speed: 1\n"),
        (Rename(("c",), "a", "b"), '{"a"', '{"b"'),
        (Set((), "z", 3), '"x" ', "3 "),
        (Set(("o",), "k", "no"), "1.0e-4", '"no"'),
        (Drop(("c",), "skip"), ', "skip": 0', ""),
        (Drop(("d",), "skip"), "skip: 0, ", ""),
    ],
)  # fmt: skip
def test_a_change_is_at_its_place_and_no_other_letter_changes(
    text: str, edit: Edit, old: str, new: str
) -> None:
    if "\r\n" in text:
        old, new = old.replace("\n", "\r\n"), new.replace("\n", "\r\n")
    assert text.count(old) == 1
    assert apply_edits(text, [edit], PATH) == text.replace(old, new)
    assert read(apply_edits(text, [edit], PATH)) != read(text)


def test_several_changes_are_of_the_text_before_them(text: str) -> None:
    edits: list[Edit] = [Put((), {"k": 0}, "e"), Put((), {"l": 1}, "e")]
    edits += [Drop(("c",), "skip"), Put(("c",), {"m": 2}, "a")]
    changed = read(apply_edits(text, edits, PATH))
    before = read(text)
    assert changed == {**before, "k": 0, "l": 1, "c": {"a": 1, "m": 2}}
    assert list(changed)[list(changed).index("e") :][:3] == ["e", "k", "l"]


def test_what_has_two_names_is_changed_once(text: str) -> None:
    changed = read(apply_edits(text, [Put((name,), {"k2": 0}, "k") for name in "op"], PATH))
    assert changed["o"] == changed["p"] == {"k": 1e-4, "k2": 0}


def test_json_stays_json() -> None:
    text = json.dumps({"a": {"b": 1}, "c": [{"d": None}]}, indent=2)
    edits = [Put((), {"form": 2}), Put(("a",), {"x": "no"}, "b"), Put(("c", 0), {"y": []})]
    changed = json.loads(apply_edits(text, edits, PATH))
    assert changed == {"form": 2, "a": {"b": 1, "x": "no"}, "c": [{"y": [], "d": None}]}
    lines = difflib.ndiff(text.splitlines(), apply_edits(text, edits, PATH).splitlines())
    assert sum(line.startswith("- ") for line in lines) == 3


def test_what_a_merge_key_brings_in_is_refused_with_its_line() -> None:
    text = "x: &x {a: {b: 1}}\ny:\n  <<: *x\n  c: 2\n"
    with pytest.raises(ParamsError, match=r"a comes in by a merge key.*params/some.yaml:3"):
        apply_edits(text, [Put(("y", "a"), {"d": 1})], PATH)


VALUES: list[Any] = [
    None,
    True,
    0,
    1.0,
    600.0,
    1e-4,
    "anew",
    "no",
    "null",
    "1",
    '"',
    "",
    "a: b",
    "é",
    [],
    {},
]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_is_spelled_so_that_it_is_read_again(value: Any) -> None:
    assert read(f"k: {spell(value)}") == {"k": value}

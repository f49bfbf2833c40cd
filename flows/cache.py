"""`stillhouse cache`: commands that list, check, clear and plan teacher caches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flows.root import find_root
from tasks.kd.errors import ParamsError

if TYPE_CHECKING:
    from tasks.kd.cache.care.clearing import Waste

F = TypeVar("F", bound=Callable[..., Any])

_SHORT = 8  # digits of a fingerprint or digest that a table shows

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group(epilog="Example:  stillhouse cache ls")
def cache() -> None:
    """List, check, clear and plan the teacher caches.

    They are in the store: .store, or the folder or fsspec URL that STILLHOUSE_STORE names.
    """


def command(example: str) -> Callable[[F], click.Command]:
    """A sub-command of `stillhouse cache` whose help ends with the example."""
    return cache.command(epilog=f"Example:  stillhouse cache {example}", no_args_is_help=False)


@command("ls")
@as_json
def ls(*, as_json: bool) -> None:
    """List what the store holds, and who needs it.

    Each cache comes before its streams and pieces; entries that recipes share are listed once.
    Only manifests are read: `stillhouse cache verify` compares the bytes.
    """
    from flows import show
    from flows.care import list_store, mend

    listing = list_store(find_root())
    if as_json:
        _print_json(listing)
        return
    show.print_rows(f"Teacher caches in {listing['store']}", _entry_rows(listing["entries"]))
    there = f", {show.size(listing['remote_bytes'])} at the URL" if listing["remote_bytes"] else ""
    show.print_line(f"{len(listing['entries'])} entries, {show.size(listing['bytes'])} here{there}")
    if listing["unneeded_bytes"]:
        unneeded = show.size(listing["unneeded_bytes"])
        show.print_line(f"No recipe needs {unneeded} of it. Run: stillhouse cache gc")
    for name, recipe in listing["recipes"].items():
        if recipe["lacks"]:
            lacks = ", ".join(one[:_SHORT] for one in recipe["lacks"])
            show.print_line(f"{name} lacks {lacks}. Run: {mend(name)}", "yellow")
        if recipe["fault"]:
            show.print_line(f"{name}: {recipe['fault']} Run: {mend(name)}", "yellow")


@command("verify quickstart")
@click.argument("names", nargs=-1, metavar="[RECIPE | FINGERPRINT]...")
@as_json
def verify(names: tuple[str, ...], *, as_json: bool) -> None:
    """Compare every byte with its digest.

    Checks what recipes need, entries (the first digits of a fingerprint will do) or, without
    arguments, the whole store. From a URL every file is fetched, and none is kept. Exit code 1 if
    anything is missing or differs. An unfinished entry that no recipe needs is no fault.
    """
    from flows import show
    from flows.care import verify_store

    checked = verify_store(find_root(), names, _bar)
    if as_json:
        _print_json(checked)
    else:
        for one in checked["unfinished"]:
            state = "is being written" if one["being_written"] else "is unfinished"
            show.print_line(f"{one['entry']} {state}: {show.size(one['bytes'])}", "yellow")
        for one in checked["faults"]:
            show.print_line(f"{one['entry'][:_SHORT]}  {one['fault']}".strip(), "bold red")
            show.print_line(f"      mend: {one['mend']}")
        count = len(checked["faults"])
        said = {0: "no fault", 1: "1 fault"}.get(count, f"{count} faults")
        show.print_line(f"{said} in {checked['files']} files, {show.size(checked['bytes'])}")
    if checked["faults"]:
        sys.exit(1)


@command("gc --dry-run")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--dry-run", is_flag=True, help="List, and remove nothing.")
@click.option("--remote", is_flag=True, help="Also at the store's URL, whoever else uses it.")
@as_json
def gc(*, yes: bool, dry_run: bool, remote: bool, as_json: bool) -> None:
    """Remove what no recipe needs.

    Removes entries in no present cache of this repository's recipes, unfinished entries whose
    writer is gone, and files that killed programs left. Asks first. Entries stay if they are in use
    or if another repository that shares the folder needs them. If the store is at a URL, only this
    machine's copies go; --remote removes the entries there too, though nobody can see from here who
    else needs them.
    """
    from flows import show
    from flows.care import clear, describe_waste, find_unneeded, gone_users, kept_of, why_kept

    root = find_root()
    kept = kept_of(root)
    if remote and kept.remote is None:
        raise ParamsError("--remote is for a store at a URL", where=kept.place)
    waste = find_unneeded(root, kept, remote=remote)
    free = [one for one in waste if not (one.in_use or one.needed_by)]
    gone = sorted({user.root for user in gone_users(root, kept)})
    size = show.size(sum(one.bytes for one in free))
    asks = bool(free) and not (yes or dry_run)
    if asks and (as_json or not sys.stdin.isatty()):
        raise ParamsError(
            f"gc would remove {size}, and there is nobody to ask",
            where=kept.place,
            mend="stillhouse cache gc --dry-run, then: stillhouse cache gc --yes",
        )
    if not as_json:
        show.print_rows(f"No recipe of {root} needs, in {kept.place}", _waste_rows(waste))
        for other in gone:
            show.print_line(f"{other} is not there any more: nothing is kept for it", "yellow")
    go = bool(free) and not dry_run and (yes or click.confirm(f"Remove {size}?"))
    done = clear(root, kept, free if go else [], remote=remote)
    stays = [{**describe_waste(one), "kept": why_kept(one)} for one in waste if one not in free]
    done = {**done, "kept": [*stays, *done["kept"]], "dry_run": dry_run, "gone": gone}
    if as_json:
        unneeded = [describe_waste(one) for one in free]
        _print_json({**done, "unneeded": unneeded, "store": kept.place})
    else:
        for one in done["kept"]:
            show.print_line(f"{one['name'][:32]} stays: {one['kept']}", "yellow")
        verb = f"would remove {size}" if dry_run else f"removed {show.size(done['bytes'])}"
        show.print_line(verb if free else "nothing to remove")
    if done["failed"]:
        sys.exit(1)


@command("plan quickstart")
@click.argument("recipe")
@click.option("--write", is_flag=True, help="Write the streams into the recipe, comments kept.")
@as_json
def plan(recipe: str, *, write: bool, as_json: bool) -> None:
    """Show what a recipe's cache would hold and cost.

    Shows the streams that its levels read, how each is served, bytes in every codec, and from how
    many epochs on the cache is quicker than the teacher itself. Works before there is any data, and
    gives totals once data are prepared. A recipe with wrong `streams` can be planned.
    """
    from flows.cache_plan import describe_plan, read_planned, write_streams

    root = find_root()
    planned = read_planned(root, recipe)
    wrote = False
    if write:
        wrote = write_streams(planned)
        planned = read_planned(root, recipe)
    costs = {**describe_plan(root, planned), "wrote": wrote, "stale": planned.text is not None}
    if as_json:
        _print_json(costs)
    else:
        _print_plan(costs, str(planned.path))


def _print_plan(costs: Mapping[str, Any], path: str) -> None:
    from flows import show

    mode = {
        "cache": "",
        "live": ": nothing is stored, the figures are of what would be",
        "auto": ": measured when cache_teacher runs",
    }[costs["mode"]]
    show.print_line(f"{costs['recipe']}: mode {costs['mode']}{mode}")
    if costs["measured"]:
        show.print_line(f"cache_teacher runs the teacher: {costs['measured']}")
    line = f"streams: [{', '.join(costs['streams'])}]"
    state = "as the recipe has them" if not costs["stale"] else "NOT as the recipe has them"
    state = f"written to {path}" if costs["wrote"] else state
    show.print_line(f"{line}  # {state}", "yellow" if costs["stale"] else None)
    if costs["unread"]:
        show.print_line(
            f"No level reads {', '.join(costs['unread'])}: stored all the same", "yellow"
        )
    show.print_rows(f"Streams, {costs['codec']}", _served_rows(costs))
    show.print_rows(_title_of_codecs(costs), _codec_rows(costs))
    _print_room(costs)
    again = f"Each reading computes {100 * costs['recompute_share']:.1f} % of a teacher's pass"
    if costs["break_even_epochs"] is None:
        show.print_line(f"{again}: the teacher itself is as quick")
        return
    epochs = f"{costs['break_even_epochs']:.2f} epochs on, this recipe reads in {costs['epochs']:g}"
    show.print_line(f"{again}. If reading were free, the cache would be quicker from {epochs}")


def _print_room(costs: Mapping[str, Any]) -> None:
    from flows import show

    room = f"quota {show.size(costs['quota_bytes'])}, {show.size(costs['free_bytes'])} free"
    if costs["bytes"] is None:
        show.print_line(f"Totals once the data are prepared; {room}")
        return
    fits = "fits" if costs["fits"] else "DOES NOT FIT"
    style = None if costs["fits"] else "bold red"
    show.print_line(f"{show.size(costs['bytes'])} {fits}: {room}", style)


# --- tables --------------------------------------------------------------------------------------


def _entry_rows(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows entry / what / examples, tokens / size / last use / needed by, with members indented."""
    rows = []
    above: str | None = None
    for entry in entries:
        if entry["kind"] == "cache":
            above = entry["fingerprint"]
        inside = above is not None and above in entry["caches"]
        teacher = f"of {(entry['teacher_sha256'] or '')[:_SHORT]}"
        what = {"cache": f"cache {teacher}", "piece": f"piece {entry['what']}", None: ""}
        name = str(what.get(entry["kind"], entry["what"]))
        alone = entry["kind"] in ("stream", "piece") and not inside
        counts = [entry["examples"], entry["tokens"]]
        rows.append(
            {
                "entry": ("  " if inside else "") + entry["fingerprint"][:_SHORT],
                "what": f"{name}\n{teacher}" if alone else name,
                "examples, tokens": "" if None in counts else f"{counts[0]:,}, {counts[1]:,}",
                "size": _size(entry["bytes"]),
                "last use": _state(entry),
                "needed by": "\n".join([*entry["recipes"], *entry["others"]]) or "no recipe",
            }
        )
    return rows


def _state(entry: Mapping[str, Any]) -> str:
    """The day of a finished entry's last use; another entry's state."""
    state = str(entry["state"])
    if entry["remote"]:
        return "at the URL" if state == "finished" else f"at the URL, {state}"
    if entry["in_use"]:
        return {"finished": "in use", "unfinished": "being written"}.get(state, f"{state}, in use")
    if state != "finished":
        return state
    if entry["last_use"] is None:
        return "never"
    return f"{datetime.fromisoformat(entry['last_use']).astimezone():%Y-%m-%d}"


def _size(value: float | None) -> str:
    from flows import show

    return "" if value is None else show.size(value)


def _waste_rows(waste: Iterable[Waste]) -> list[dict[str, str]]:
    """Rows what / why / size / stays."""
    from flows.care import why_kept

    kinds = {"temporary": "temporary files in ", "remote": "at the URL: "}
    return [
        {
            "what": kinds.get(one.kind, "") + one.name,
            "why": one.why,
            "size": _size(one.bytes),
            "stays": why_kept(one) if one.in_use or one.needed_by else "",
        }
        for one in waste
    ]


def _served_rows(costs: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows stream / for / served / bytes / size."""
    rows = []
    for one in costs["served"]:
        readers = [*(["a level"] if one["read"] else []), *one["needed_for"]]
        stored = f"{one['bytes_per_token']} a token, {one['bytes_per_example']} an example"
        if one["stream"] == "logits" and costs["texts"] is None:
            stored += " and 4 a label"
        computed = f"from {one['source']} by {one['piece']}"
        rows.append(
            {
                "stream": one["stream"],
                "for": "\n".join(readers) or "nothing",
                "served": "stored" if one["stored"] else computed,
                "bytes": stored if one["stored"] else "",
                "size": _size(one["bytes"]) if one["stored"] else "",
            }
        )
    return rows


def _title_of_codecs(costs: Mapping[str, Any]) -> str:
    length = f"{costs['tokens_per_example']:.0f} tokens"
    texts = f"texts of {length}" + (" on average" if costs["texts"] else ", the most allowed")
    return f"Codecs, against {costs['naive_bytes_per_token']:,} bytes a token naively, {texts}"


def _codec_rows(costs: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows codec / bytes a token / smaller / size."""
    return [
        {
            "codec": codec + (" (the recipe's)" if codec == costs["codec"] else ""),
            "bytes a token": f"{size['bytes_per_token']:,.1f}",
            "smaller": f"{size['naive_ratio']:.1f} times" if size["naive_ratio"] else "",
            "size": _size(size["bytes"]),
        }
        for codec, size in costs["codecs"].items()
    ]


def _bar(total: int) -> Any:
    """A progress bar over bytes with an ETA, on standard error, shown on a terminal only."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        desc="verify",
        dynamic_ncols=True,
        leave=False,
        disable=None,
    )


def _print_json(value: Mapping[str, Any]) -> None:
    click.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))

"""List, measure and prune the folder of caches: downloads, unpacked packages, images, layers, clusters and so on.

list shows every entry, that which was not used for the longest time first; size shows the sum of each kind. prune
removes what --older-than, --max-size or --all say. It is safe while builds run: then what was used within the last day
stays. The dates of the newest indexes that were seen are never removed, since they keep mirrors from going back in
time.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence

from imgkit.api.cacheentries import CacheEntry, cache_entries
from imgkit.api.cachepruning import prune
from imgkit.cli.command import Invocation
from imgkit.disk.size import show_file_size
from imgkit.errors import UsageError
from imgkit.fetch.cache import default_folder
from imgkit.host import terminal
from imgkit.host.jsonkeys import jsonable
from imgkit.recipe import parse_size

NAME = "cache"
HELP = "list, measure and prune the cache"

_DURATION = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("action", choices=["list", "size", "prune"], help="what to do")
    parser.add_argument("--older-than", metavar="AGE", help="prune: what was not used for so long: 30d, 12h, 2w")
    parser.add_argument("--max-size", metavar="SIZE", help="prune: the oldest, until the cache has this size: 2G")
    parser.add_argument("--all", action="store_true", help="prune: everything that can be downloaded or made again")
    parser.add_argument("--dry-run", action="store_true", help="prune: remove nothing, and say what would be removed")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace, _invocation: Invocation) -> int:
    """Print the entries, their sums, or what was removed."""
    _check(options)
    folder, now = default_folder(), time.time()
    if options.action == "prune":
        entries = prune(
            folder,
            older_than=None if options.older_than is None else parse_age(options.older_than),
            max_size=None if options.max_size is None else _size(options.max_size),
            everything=options.all,
            dry_run=options.dry_run,
        )
    else:
        entries = cache_entries(folder)
    if options.json:
        size = sum(entry.size for entry in entries)
        print(terminal.as_json({"folder": str(folder), "size": size, "entries": jsonable(entries)}))
        return 0
    lines = sums(entries) if options.action == "size" else table(entries, now)
    verb = {"list": "in", "size": "in", "prune": "would be removed from" if options.dry_run else "removed from"}
    count = f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'}"
    total = show_file_size(sum(entry.size for entry in entries))
    print(terminal.block("\n".join([*lines, f"{count}, {total} {verb[options.action]} {folder}"])))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse options that contradict the action.

    Raises:
        UsageError: there is nothing to prune by, or something without pruning.
    """
    given = [options.older_than, options.max_size, options.all or None, options.dry_run or None]
    if options.action != "prune" and any(value is not None for value in given):
        raise UsageError(f"cache {options.action}: --older-than, --max-size, --all and --dry-run are for prune")
    if options.action == "prune" and all(value is None for value in given[:3]):
        hint = "--older-than 30d, --max-size 2G, or --all"
        raise UsageError("cache prune: nothing says what is to be removed", hint=hint)


def parse_age(text: str) -> int:
    """Return the seconds of a duration such as ``30d``; units are s, m, h, d and w.

    Raises:
        UsageError: it is not a duration.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise UsageError(f"--older-than {text}: not an age such as 30d, 12h or 2w")
    return int(match[1]) * _UNITS[match[2]]


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as cause:
        raise UsageError(f"--max-size: {cause}") from cause


def table(entries: Sequence[CacheEntry], now: float) -> list[str]:
    """Return a line for each entry: its size, the days since its last use, its kind and name."""
    return [
        f"{entry.size / 1e6:10.1f} MB  {_age(now - entry.used):>8}  {entry.kind:<19}  {entry.name}" for entry in entries
    ]


def _age(seconds: float) -> str:
    """Return a time in the largest unit of which there are two, ``47 h`` or ``3 d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit}"
    return "now"


def sums(entries: Sequence[CacheEntry]) -> list[str]:
    """Return a line for each kind of entries, the largest sum first."""
    kinds: dict[str, list[CacheEntry]] = {}
    for entry in entries:
        kinds.setdefault(entry.kind, []).append(entry)
    totals = sorted(
        ((sum(entry.size for entry in some), kind, len(some)) for kind, some in kinds.items()), reverse=True
    )
    return [f"{total / 1e6:10.1f} MB  {count:>6}  {kind}" for total, kind, count in totals]

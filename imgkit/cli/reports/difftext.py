"""The text of ``imgkit diff``: about one screen for each pair of images, however much differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from imgkit.api.comparing import Comparison
from imgkit.comparison.differences import ChangedFact, ChangedFile, ComparedSide, ImageDifferences
from imgkit.disk.size import show_file_size, show_size

_MOST_FACTS = 12
_MOST_PACKAGES = 15
_MOST_ORIGINS = 8
_MOST_FILES = 10
_MOST_WIDTH = 60  # characters of a value


def text(comparison: Comparison) -> str:
    """Return the differences as text. Names in it may be those of hostile images: print it with ``terminal.block``."""
    blocks = ["\n".join(_pair(pair)) for pair in comparison.pairs]
    for names, side in ((comparison.only_before, "the first"), (comparison.only_after, "the second")):
        if names:
            blocks.append(f"only in {side}: {', '.join(names)}")
    return "\n\n".join(blocks)


def _pair(pair: ImageDifferences) -> Iterator[str]:
    yield f"{_side(pair.before)} → {_side(pair.after)}"
    if pair.equal:
        files = "" if pair.files is None else f" and {pair.files_same} files"
        yield f"no difference: {pair.packages_same} packages{files}"
        return
    if pair.facts:
        yield ""
        yield from _shortened(list(_facts(pair.facts)), _MOST_FACTS)
    yield from ("", _count_of_packages(pair))
    yield from _shortened(list(_packages(pair)), _MOST_PACKAGES)
    if pair.files is not None:
        yield from ("", _count_of_files(pair, pair.files))
        yield from _shortened(list(_origins(pair.files)), _MOST_ORIGINS)
        yield from _shortened(list(_files(pair, pair.files)), _MOST_FILES)


def _side(side: ComparedSide) -> str:
    facts = [side.kind, side.arch, "" if side.image_size is None else show_file_size(side.image_size)]
    return f"{side.source} ({', '.join(fact for fact in facts if fact)})"


def _shortened(lines: Sequence[str], most: int) -> Iterator[str]:
    """Yield at most ``most`` lines, the last of which then says how many there are besides."""
    if len(lines) <= most:
        yield from lines
        return
    yield from lines[: most - 1]
    yield f"  … and {len(lines) - most + 1} more; --json has all"


def _facts(facts: Sequence[ChangedFact]) -> Iterator[str]:
    width = max(len(fact.name) for fact in facts)
    for fact in facts:
        fact_values = (fact.before, fact.after)
        if isinstance(fact.before, list) and isinstance(fact.after, list):
            came = [f"+{_value(item)}" for item in fact.after if item not in fact.before]
            went = [f"-{_value(item)}" for item in fact.before if item not in fact.after]
            changed = " ".join([*came, *went]) or "in another order"
            yield f"  {fact.name:<{width}}  {_cut(changed, 2 * _MOST_WIDTH)}"
        else:
            before, after = (_size(value) if fact.name.endswith("Size") else _value(value) for value in fact_values)
            yield f"  {fact.name:<{width}}  {before} → {after}"


def _size(value: object) -> str:
    return show_size(value) if isinstance(value, int) else _value(value)


def _value(value: object) -> str:
    return _cut(value if isinstance(value, str) else "none" if value is None else json.dumps(value), _MOST_WIDTH)


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _count_of_packages(pair: ImageDifferences) -> str:
    directions = [package.direction for package in pair.packages_changed]
    counts = {
        "added": len(pair.packages_added),
        "removed": len(pair.packages_removed),
        **{direction: directions.count(direction) for direction in ("up", "down", "rebuilt")},
        "the same": pair.packages_same,
    }
    return "packages: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count or word == "the same")


def _packages(pair: ImageDifferences) -> Iterator[str]:
    yield from (f"  + {package.name} {package.version}" for package in pair.packages_added)
    yield from (f"  - {package.name} {package.version}" for package in pair.packages_removed)
    for package in pair.packages_changed:
        versions = package.before if package.direction == "rebuilt" else f"{package.before} → {package.after}"
        yield f"  {package.direction} {package.name} {versions}"


def _count_of_files(pair: ImageDifferences, files: Sequence[ChangedFile]) -> str:
    sizes = [side.files_size or 0 for side in (pair.before, pair.after)]
    words = [f"{_count(files, change)} {change}" for change in ("added", "removed", "changed") if _count(files, change)]
    return f"files: {', '.join([*words, f'{pair.files_same} the same'])}; {_growth(sizes[1] - sizes[0])}"


def _files(pair: ImageDifferences, files: Sequence[ChangedFile]) -> Iterator[str]:
    """Yield a line for each path. Those that no change of a package explains come first."""
    explained = {package.name for package in (*pair.packages_added, *pair.packages_removed)}
    explained |= {package.name for package in pair.packages_changed}
    for file in sorted(files, key=lambda file: (file.origin in explained, file.path)):
        if file.change == "changed":
            yield f"  ~ {file.path}: {', '.join(file.aspects)}"
        else:
            yield f"  {'+' if file.change == 'added' else '-'} {file.path}"


def _count(files: Sequence[ChangedFile], change: str) -> int:
    return sum(file.change == change for file in files)


def _growth(size: int) -> str:
    return f"{'-' if size < 0 else '+'}{abs(size) / 1e6:.1f} MB"


def _origins(files: Sequence[ChangedFile]) -> Iterator[str]:
    """Yield a line for each origin of files, that with most of them first."""
    by_origin: dict[str, list[ChangedFile]] = {}
    for file in files:
        by_origin.setdefault(file.origin, []).append(file)
    width = max(map(len, by_origin), default=0)
    for origin, listed in sorted(by_origin.items(), key=lambda item: (-len(item[1]), item[0])):
        counts = [f"{_count(listed, change)} {change}" for change in ("added", "removed", "changed")]
        present = ", ".join(words for words in counts if not words.startswith("0 "))
        yield f"  {origin:<{width}}  {present}, {_growth(sum(file.after - file.before for file in listed))}"

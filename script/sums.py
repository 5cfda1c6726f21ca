"""Compare sums of builds on several hosts: ``python3 -m script.sums FOLDER NUMBER``.

Each host's sums are a file ``FOLDER/HOST/sums.txt``, as shasum(1) writes it. The status is 0 if all are equal and there
are as many as NUMBER says, so that a host without sums is no success.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import unified_diff
from pathlib import Path

NAME = "sums.txt"


def faults(folder: Path, number: int) -> Iterator[str]:
    """Yield a line for each thing that is wrong; a difference is shown against the sums that most hosts have.

    Args:
        number: how many hosts there are.
    """
    texts = {path.parent.name: path.read_text() for path in sorted(folder.glob(f"*/{NAME}"))}
    if len(texts) != number or not texts:
        yield f"{len(texts)} hosts have sums, and there should be {number}: {', '.join(texts) or 'none'}"
    yield from (f"{host}: its sums are empty" for host, text in texts.items() if not text.strip())
    usual = Counter(texts.values()).most_common(1)
    for host, text in texts.items():
        if text != usual[0][0]:
            first = next(other for other, same in texts.items() if same == usual[0][0])
            yield from unified_diff(usual[0][0].splitlines(), text.splitlines(), first, host, lineterm="", n=0)


def main(arguments: Sequence[str]) -> int:
    """Print what is wrong, or that nothing is. Return the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m script.sums", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("number", type=int, metavar="NUMBER")
    options = parser.parse_args(arguments)
    found = list(faults(options.folder, options.number))
    print("\n".join(found) if found else f"{options.number} hosts have built the same bytes")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

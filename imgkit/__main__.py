"""``python -m imgkit``."""

import sys

from imgkit.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m diffstride``, which is the command ``diffstride``."""

import sys

from diffstride.cli import main

if __name__ == "__main__":
    sys.exit(main())

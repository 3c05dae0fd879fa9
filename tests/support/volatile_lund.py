"""`python -m tests.support.volatile_lund ARGUMENTS OF LUND`: lund with its volumes on volatile devices."""

from __future__ import annotations

import sys

from target.daemon import main
from tests.support.volatile_device import install

if __name__ == "__main__":
    install()
    sys.exit(main())

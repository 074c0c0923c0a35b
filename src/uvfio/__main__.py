"""``python -m uvfio`` is the ``uvfio`` command."""

import sys

from uvfio.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""``python -m covector.cli``: the same as ``covector``."""

import sys

from covector.cli import main

sys.exit(main())

"""``python -m learnit_r8`` is ``learnit-r8``."""

import sys

from .cli import main

sys.exit(main())

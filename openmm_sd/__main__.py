"""``python -m openmm_sd`` is ``openmm-sd``."""

import sys

from .cli import main

sys.exit(main())

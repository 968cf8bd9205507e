"""Evaluate one bridge on one platform: ``python -m openmm_sd.bridges BRIDGE PLATFORM``.

Prints one line of JSON. Run by `openmm_sd.bridges.probe` in a process of its own, so that a bridge
that crashes takes nothing with it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from .probe import attempt


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m openmm_sd.bridges", description=__doc__)
    parser.add_argument("bridge")
    parser.add_argument("platform")
    arguments = parser.parse_args()
    print(json.dumps(asdict(attempt(arguments.bridge, arguments.platform))), flush=True)


main()

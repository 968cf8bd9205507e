"""What a command hands back to the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result of a command.

    Attributes
    ----------
    result : dict
        The JSON object that ``--json`` prints.
    text : str
        What people get to read instead.
    code : int
        Exit code.
    """

    result: dict[str, Any]
    text: str
    code: int = 0

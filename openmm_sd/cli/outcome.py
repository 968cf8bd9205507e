"""What a command hands back to the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result of a command.

    Attributes
    ----------
    result : dict or list of dict
        What ``--json`` prints.
    text : str
        What people get to read instead.
    code : int
        Exit code.
    quiet : bool
        Whether nothing is printed: another process speaks for this one.
    """

    result: dict[str, Any] | list[dict[str, Any]]
    text: str
    code: int = 0
    quiet: bool = False

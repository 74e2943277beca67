"""The one error a user can cause, and the hint that goes with a mistyped name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class InputError(ValueError):
    """Bad input: its text is one line that says where, what was expected, what came and what to do.

    The command line prints that line and exits with code 2; in Python it is an ordinary ``ValueError``.
    """


class PerformanceWarning(UserWarning):
    """A call is served by the plain-torch reference at a size where that costs; the text says why, and what to do."""


def need(package: str, extra: str) -> None:
    """Refuse to go on without a package of an extra.

    Raises:
        ImportError: it is not installed; the text says how to get it.
    """
    if not find_spec(package):
        raise ImportError(f"{package}: expected this package, it is not installed; pip install 'lossmith[{extra}]'")


def near(name: str, choices: Iterable[str]) -> str:
    """Text that follows an unknown name: the near ones if there are any, otherwise all of them.

    >>> near("hinje", ["hinge", "sigmoid"])
    "did you mean 'hinge'?"
    >>> near("zzz", ["hinge", "sigmoid"])
    "choose from 'hinge', 'sigmoid'"
    >>> near("F1", ["f1", "jaccard"])
    "did you mean 'f1'?"
    """
    choices = list(choices)
    close = [choice for choice in choices if choice.lower() == name.lower()]
    close = close or difflib.get_close_matches(name, choices, n=3, cutoff=0.6)
    quoted = ", ".join(repr(choice) for choice in close or choices)
    return f"did you mean {quoted}?" if close else f"choose from {quoted}"

"""The one exception a user's mistake raises, and the hint that goes with it.

    raise UserError(f"{path}:{line}: unknown key 'tokns'" + did_you_mean("tokns", ["tokens"]))

The roof prints a UserError as one line and exits with code 2. Our own broken
invariants stay `assert`s and tracebacks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend; its text is one line: place, value, way out."""


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """`"; did you mean 'tokens'?"` for the closest of `known`, else the first few of them."""
    names = sorted({str(name) for name in known})
    close = difflib.get_close_matches(value, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not names:
        return ""
    listed = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; known: {listed}"

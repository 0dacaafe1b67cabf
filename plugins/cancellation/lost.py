"""Lost cancels: one that lands in a weakref callback or a `__del__` ends there, and Python prints it.

It does no harm, for it is sent again. It is not worth a traceback on the author's screen either,
and it was not the author's code that swallowed it.
"""

from __future__ import annotations

import sys
from typing import Any

from ...schemas.problems import RequestCancelled
from .here import here


class Lost:
    """Owns the wrapper around `sys.unraisablehook`. One per process."""

    def __init__(self) -> None:
        self._plain: Any = None
        self._ours: Any = None

    def install(self) -> None:
        plain = self._plain = sys.unraisablehook

        def hook(unraisable: Any) -> None:
            call = here.call
            if call is not None and issubclass(unraisable.exc_type, RequestCancelled):
                call.raised -= 1
            else:
                plain(unraisable)

        self._ours = sys.unraisablehook = hook

    def remove(self) -> None:
        if sys.unraisablehook is self._ours:  # else somebody wrapped it, and calls ours
            sys.unraisablehook = self._plain


lost = Lost()

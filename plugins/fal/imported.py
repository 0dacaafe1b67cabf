"""Act on a package when the app imports it, without importing it for those that never do."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def when_imported(name: str, act: Callable[[ModuleType], None]) -> Callable[[], None]:
    """Call `act` with the module `name`: now if it is there, else right after it was first imported.

    Returns what takes that back.
    """
    module = sys.modules.get(name)
    if module is not None:
        act(module)
        return lambda: None
    watch = _Watch(name, act)
    sys.meta_path.insert(0, watch)
    return watch.end


class _Watch:
    """Finds its module as the other finders do, and is there when it has run."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self._name, self._act = name, act

    def end(self) -> None:
        if self in sys.meta_path:
                sys.meta_path.remove(self)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        self.end()
        spec = importlib.util.find_spec(name)
        loader: Any = spec.loader if spec is not None else None
        if loader is None:
            return spec
        run = loader.exec_module

        def run_and_act(module: ModuleType) -> None:
            run(module)
            self._act(module)

        loader.exec_module = run_and_act
        return spec

"""torch's state in one thread: looked at before the work, put back after a cancel.

Grad mode, inference mode, autocast, the mode stacks and the default dtype are set by context
managers, which a cancel that lands between two of their lines can leave behind. What has a setter
is put back. Inference mode has none: a thread left in it is retired.

The random generator of the CPU is put back too, so that a cancelled request leaves no mark on the
next one's numbers, unless another call ran at the same time and used the same generator.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

AUTOCAST_DEVICES = ("cpu", "cuda")


class _Others:
    """The calls that are running now, so that each knows whether it was alone."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[State] = set()

    def enter(self, state: State) -> None:
        with self._lock:
            for other in self._running:
                other.alone = False
            state.alone = not self._running
            self._running.add(state)

    def leave(self, state: State) -> None:
        with self._lock:
            self._running.discard(state)


_others = _Others()


class State:
    """What one call found, and whether it was the only one running."""

    __slots__ = ("alone", "generator", "modes", "torch")

    def __init__(self, torch: Any, is_child: bool) -> None:
        self.torch = torch
        self.modes = _modes(torch)
        self.alone = False
        if not is_child:  # a child draws numbers on its parent's account
            _others.enter(self)
            self.generator = torch.default_generator.get_state()

    def close(self, *, restore: bool) -> bool:
        """End the call. With `restore`, put back what differs; False when that cannot be done."""
        _others.leave(self)
        if not restore:
            return True
        if self.alone:
            self.torch.default_generator.set_state(self.generator)
        if _modes(self.torch) != self.modes:
            _put_back(self.torch, self.modes)
        return _modes(self.torch) == self.modes


def look(*, is_child: bool) -> State | None:
    """The state of this thread; None as long as nobody has imported torch."""
    torch = sys.modules.get("torch")
    if torch is None or getattr(torch.__spec__, "_initializing", False):
        return None
    return State(torch, is_child)


def _modes(torch: Any) -> tuple[Any, ...]:
    core = torch._C
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        core._len_torch_function_stack(),
        core._len_torch_dispatch_stack(),
        torch.is_autocast_cache_enabled(),
        *((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in AUTOCAST_DEVICES),
    )


def _put_back(torch: Any, modes: tuple[Any, ...]) -> None:
    core = torch._C
    grad, _, dtype, functions, dispatches, cached, *autocasts = modes
    while core._len_torch_function_stack() > functions:
        core._pop_torch_function_stack()
    while core._len_torch_dispatch_stack() > dispatches:
        core._pop_torch_dispatch_stack(None)
    for device, (enabled, kind) in zip(AUTOCAST_DEVICES, autocasts, strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, kind)
    torch.set_autocast_cache_enabled(cached)
    torch.clear_autocast_cache()
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)

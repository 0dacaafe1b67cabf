"""The fingerprint: whether a cancelled run left a model half changed.

Of each parameter and buffer of an app's modules: where its bytes are, how often they were written
to, whether it wants gradients; of each module its mode and its hooks. Taken after `setup()` and
compared after a cancel, it costs some 3 µs for each parameter. What the first normal runs change
(a cache kept in a buffer, weights that move to the GPU and back) is learned, and then no evidence.

Writes under inference mode leave no count: those it does not see. Nor plain attributes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

RUNS_TO_LEARN = 3


class Fingerprint:
    """Of the modules that an app keeps in its attributes. Owned by the lane's thread that asks."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._marks = dict(_marks(app))
        self._moving: set[str] = set()  # what a normal run changes
        self._to_learn = RUNS_TO_LEARN

    def learn(self) -> None:
        """A run has ended normally. Free after the first few."""
        if self._to_learn:
            self._to_learn -= 1
            now = dict(_marks(self._app))
            self._moving |= _different(self._marks, now)
            self._marks = now

    def changed(self) -> list[str]:
        """After a cancel: the names of what is not as it was, such as `model.layer.weight`."""
        return sorted(_different(self._marks, dict(_marks(self._app))) - self._moving)


def _different(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _marks(app: Any) -> Iterator[tuple[str, Any]]:
    torch = sys.modules.get("torch")
    if torch is None:
        return
    for name, kept in dict(vars(app)).items():  # a copy: others may be at work with the app
        for label, module in _modules(torch, name, kept):
            for inner, each in module.named_modules(prefix=label):
                yield f"{inner}()", (each.training, len(each._forward_hooks), len(each._forward_pre_hooks))
                for key, tensor in (*dict(each._parameters).items(), *dict(each._buffers).items()):
                    if tensor is not None:
                        version = -1 if tensor.is_inference() else tensor._version
                        yield f"{inner}.{key}", (tensor.data_ptr(), version, tensor.requires_grad, tensor.dtype)


def _modules(torch: Any, name: str, kept: Any) -> Iterator[tuple[str, Any]]:
    """`kept` itself, or those that a pipeline keeps: diffusers names them in `components`."""
    if isinstance(kept, torch.nn.Module):
        yield name, kept
        return
    components = getattr(kept, "components", None)
    parts = kept if isinstance(kept, dict) else components if isinstance(components, dict) else {}
    for key, part in dict(parts).items():
        if isinstance(part, torch.nn.Module):
            yield f"{name}.{key}", part

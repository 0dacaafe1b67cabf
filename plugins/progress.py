"""Progress: how far a request is, told to whoever reads its event log.

`progress` and `preview` may be called from any thread and as often as one likes: the newest state
wins, and the log takes ten a second. Where nobody could read them, in requests without an event
log, they cost a look-up.

Bars feed it by themselves (`--progress-bars off` to leave them alone): those of tqdm, and so of
most libraries; diffusers' steps also when its bars are switched off; transformers' `generate`, which
has none. A package is only looked for among those imported already, when a request with a log
begins, and what is changed in it is put back when the service ends.
"""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from ..schemas.endpoint import Endpoint
from ..schemas.request import Request, current_request
from ..schemas.response import Response
from ..schemas.service import Call, ServiceView, Wrapper
from .hookspecs import hookimpl

PREVIEW_SIDE = 256  # pixels, at most: a preview travels inside an event


def progress(done: float, total: float | None = None, message: str | None = None) -> None:
    """Tell that `done` of `total` steps are done. Without effect where no event log is kept."""
    tell(current_request(), done, total, message)


def tell(request: Request, done: float, total: float | None, message: str | None = None) -> None:
    if request.log is not None:
        told = {"done": done, "total": total, "message": message}
        request.log.latest("progress", {name: value for name, value in told.items() if value is not None})


def preview(image: Any) -> None:
    """Show `image`, a PIL image or an array of pixels (height, width, 3), as it is now: a small JPEG.

    Without effect where no event log is kept. Needs Pillow.
    """
    log = current_request().log
    if log is not None:
        log.latest("preview", {"preview": as_data_uri(image)})


def as_data_uri(image: Any) -> str:
    from PIL import Image

    if not isinstance(image, Image.Image):
        if hasattr(image, "detach"):
            image = image.detach().cpu().numpy()
        image = Image.fromarray(image)
    small = image.convert("RGB")
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    with io.BytesIO() as encoded:
        small.save(encoded, "JPEG", quality=70)
        return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()


# --- bars of others


class Bars:
    """What was changed in other packages so that their bars are heard. One per process, like they."""

    def __init__(self) -> None:
        self._services = 0
        self._changed: dict[str, tuple[Any, str, Any]] = {}  # class, name and original, by module

    def open(self) -> None:
        self._services += 1

    def close(self) -> None:
        """With the last service that listens, put everything back."""
        self._services -= 1
        if not self._services:
            for kind, name, original in self._changed.values():
                setattr(kind, name, original)
            self._changed.clear()

    def look(self) -> None:
        """Listen to what has been imported since."""
        for module, (kind, name, listen) in HEARD.items():
            if module in self._changed or (imported := sys.modules.get(module)) is None:
                continue
            owner = getattr(imported, kind, None)
            original = getattr(owner, name, None)
            if original is not None:  # it is not while the package is still being imported
                self._changed[module] = owner, name, original
                setattr(owner, name, listen(original))


def of_tqdm(refresh: Callable[..., Any]) -> Callable[..., Any]:
    """tqdm draws a bar: about ten times a second, and when it begins."""

    def listening(bar: Any, *arguments: Any, **options: Any) -> Any:
        if not bar.disable:
            tell(current_request(), bar.n, bar.total, bar.desc.removesuffix(": ") or None)
        return refresh(bar, *arguments, **options)

    return listening


def of_diffusers(progress_bar: Callable[..., Any]) -> Callable[..., Any]:
    """A pipeline makes its bar; one that is switched off is counted all the same."""

    def listening(pipeline: Any, iterable: Any = None, total: Any = None) -> Any:
        bar = progress_bar(pipeline, iterable, total)
        if not getattr(bar, "disable", False) or current_request().log is None:
            return bar
        if iterable is not None:
            return each_told(iterable)
        if total is not None:
            done = 0.0

            def update(n: float = 1) -> None:
                nonlocal done
                done += n
                tell(current_request(), done, total)

            bar.update = update
        return bar

    return listening


def each_told(items: Any) -> Iterator[Any]:
    total = len(items) if hasattr(items, "__len__") else None
    for done, item in enumerate(items, 1):
        yield item
        tell(current_request(), done, total)


def of_transformers(get_stopping_criteria: Callable[..., Any]) -> Callable[..., Any]:
    """`generate` asks for what stops it: a list that is called after every token (transformers 5.24)."""

    def listening(model: Any, *arguments: Any, **options: Any) -> Any:
        criteria = get_stopping_criteria(model, *arguments, **options)
        return criteria if current_request().log is None else counted(criteria)

    return listening


def counted(criteria: Any) -> Any:
    kind: Any = type(criteria)

    class Counted(kind):  # type: ignore[misc]
        begun_at: int | None = None

        def __call__(self, input_ids: Any, *arguments: Any, **options: Any) -> Any:
            length = input_ids.shape[-1]
            if self.begun_at is None:
                self.begun_at = length - 1
            longest = self.max_length
            tell(current_request(), length - self.begun_at, longest - self.begun_at if longest else None)
            return super().__call__(input_ids, *arguments, **options)

    return Counted(criteria)


HEARD: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "tqdm.std": ("tqdm", "refresh", of_tqdm),
    "diffusers.pipelines.pipeline_utils": ("DiffusionPipeline", "progress_bar", of_diffusers),
    "transformers.generation.utils": ("GenerationMixin", "_get_stopping_criteria", of_transformers),
}
bars = Bars()


@hookimpl
def wrap_call(endpoint: Endpoint, service: ServiceView) -> Wrapper | None:
    if service.settings.progress_bars == "off":
        return None

    def wrap(call: Call) -> Call:
        def listening(request: Request, arguments: dict[str, Any]) -> Awaitable[Response]:
            if request.log is not None:
                bars.look()
            return call(request, arguments)

        return listening

    return wrap


@hookimpl
def lifespan(service: ServiceView) -> AbstractAsyncContextManager[None] | None:
    return heard() if service.settings.progress_bars == "on" else None


@asynccontextmanager
async def heard() -> AsyncIterator[None]:
    bars.open()
    try:
        yield
    finally:
        bars.close()

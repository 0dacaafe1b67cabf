"""Progress: how far a request is, told to whoever reads its event log.

`progress` and `preview` may be called from any thread and as often as one likes: the newest state
wins, and the log takes ten a second. They cost a look-up where nobody could read them: requests
without an event log.
"""

from __future__ import annotations

import base64
import io
import sys
from typing import Any

from ..schemas.request import Request, current_request

PREVIEW_SIDE = 256  # pixels, at most; a preview travels inside an event


def progress(done: float, total: float | None = None, message: str | None = None) -> None:
    """Tell that `done` of `total` steps are done. Without effect where no event log is kept."""
    tell(current_request(), done, total, message)


def tell(request: Request, done: float, total: float | None, message: str | None = None) -> None:
    if request.log is not None:
        told = {"done": done, "total": total, "message": message}
        request.log.latest("progress", {name: value for name, value in told.items() if value is not None})


def preview(image: Any) -> None:
    """Show `image`, a PIL image or an array of pixels, as it is now: a small JPEG in the event log.

    Without effect where no event log is kept. Needs Pillow.
    """
    log = current_request().log
    if log is not None:
        log.latest("preview", {"preview": data_uri(image)})


def data_uri(image: Any) -> str:
    from PIL import Image

    if not isinstance(image, Image.Image):
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(image, torch.Tensor):
            image = image.detach().cpu().numpy()
        image = Image.fromarray(image)
    small = image.convert("RGB")
    small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    with io.BytesIO() as encoded:
        small.save(encoded, "JPEG", quality=70)
        return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()

"""Downloads that an app's author asks for: weights, references, whatever `setup()` needs.

They go through the service's depot, so they keep the same rules about addresses as inputs do, and
end with the request that they are made in. The limits of inputs in size and time are not theirs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...schemas.files import Content, Unfetchable, checked_url, decode_data_uri, is_data, safe_name
from ...schemas.problems import HTTPError
from ...schemas.request import current_request
from ...schemas.storing import Errand, depot_of
from . import toolkit
from .toolkit import DownloadError

MiB = 1024 * 1024


def download_file(
    url: str,
    target_dir: str | Path,
    *,
    force: bool = False,
    request_headers: Mapping[str, str] | None = None,
    filesize_limit: int | None = None,
) -> Path:
    """Fetch `url` into `target_dir` (relative: below the persistent folder) and return the file's path.

    Its name is what the server or else the URL says, or the SHA-256 of the URL. A file of that name
    and size that is there already stays, unless `force`. `filesize_limit` is in MB. DownloadError
    for whatever goes wrong.
    """
    folder = toolkit.FAL_PERSISTENT_DIR / target_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = _fetched(url, folder, request_headers, filesize_limit * MiB if filesize_limit is not None else None)
        try:
            return _placed(content, folder / (content.file_name or _digest(url)), force=force)
        finally:
            content.close()
    except (Unfetchable, ValueError, OSError, HTTPError) as error:
        raise DownloadError(f"{url[:200]} could not be fetched: {error}") from error


def download_model_weights(
    url: str, *, force: bool = False, request_headers: Mapping[str, str] | None = None
) -> Path:
    """Fetch weights into the folder for them, once: what is there is used without asking the network."""
    folder = toolkit.FAL_MODEL_WEIGHTS_DIR / _digest(url)
    if not force and folder.is_dir():
        for path in sorted(folder.iterdir()):
            if not path.name.startswith("."):
                return path
    return download_file(url, folder, force=force, request_headers=request_headers)


def image_reader(image: Any) -> Callable[..., Any]:
    """`read_image_from_url`, made of our Image."""

    def read_image_from_url(url: str, convert_to_rgb: bool = True) -> Any:
        """The picture at `url` for Pillow, upright. InvalidInput when there is none, or one above 50 MiB."""
        return image(url).to_pil("RGB" if convert_to_rgb else "RGBA")

    return read_image_from_url


def _fetched(url: str, folder: Path, headers: Mapping[str, str] | None, most_bytes: int | None) -> Content:
    url = checked_url(url)
    if is_data(url):
        data = decode_data_uri(url)
        if most_bytes is not None and len(data) > most_bytes:
            raise Unfetchable(f"it is larger than {most_bytes} bytes")
        content = Content()
        content.append(data)
        return content
    request = current_request()
    depot = depot_of(request)
    if depot is None:
        raise Unfetchable("no runner runs here; it fetches while it serves, also in setup()")
    errand = Errand(most_bytes=most_bytes, by_author=True, headers=dict(headers or {}), folder=str(folder))
    content = depot.fetch(url, lambda: request.cancelled, errand)
    content.file_name = content.file_name or safe_name(urlsplit(url).path)
    return content


def _placed(content: Content, target: Path, *, force: bool) -> Path:
    if not force and target.is_file() and target.stat().st_size == content.size:
        return target
    partial = target.with_name(f".{target.name[:200]}.{os.urandom(4).hex()}")
    try:
        with content.reader() as source, partial.open("xb") as sink:
            shutil.copyfileobj(source, sink, MiB)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _digest(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()

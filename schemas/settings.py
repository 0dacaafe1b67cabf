"""The settings: one table, read from flags, the environment and a file, in that order of strength."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from .problems import ConfigError


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set. Each is a flag, `RUNNER_<NAME>` and a key of `[tool.runner]` or runner.toml."""

    host: Annotated[str, Meta(description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 picks a free one")] = 8000
    app_dir: Annotated[str, Meta(description="folder that the app is imported from")] = "."
    app_id: Annotated[str, Meta(pattern=r"^$|^[\w.-]+/[\w.-]+$", description="owner/name that callers use; default local/<class-name>")] = ""
    plugin: Annotated[list[str], Meta(description="plugin to add: a file, module or module:object; may repeat")] = []
    no_plugin: Annotated[list[str], Meta(description="built-in plugin to leave out; may repeat")] = []
    tls_cert: Annotated[str, Meta(description="certificate chain, PEM")] = ""
    tls_key: Annotated[str, Meta(description="private key, PEM")] = ""
    log_format: Annotated[Literal["console", "json"], Meta(description="for people or for machines")] = "console"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="least level to log")] = "info"
    max_body_bytes: Annotated[int, Meta(ge=1, description="largest request body, also once decompressed")] = 100 * 1024 * 1024
    max_queued_requests: Annotated[int, Meta(ge=0, description="requests that may wait for a place")] = 1000
    max_message_bytes: Annotated[int, Meta(ge=1, description="largest message of a WebSocket")] = 100 * 1024 * 1024
    max_messages_per_second: Annotated[int, Meta(ge=0, description="messages read of one WebSocket per second; 0 for any number")] = 10_000
    ping_seconds: Annotated[float, Meta(gt=0, description="silence after which a stream of events gets a comment")] = 15
    progress_bars: Annotated[Literal["on", "off"], Meta(description="whether bars of tqdm and the like tell how far a request is")] = "on"
    allow_private_hosts: Annotated[list[str], Meta(description="host that inputs may be fetched from although private; may repeat")] = []
    data_dir: Annotated[str, Meta(description="folder for what outlives the process: queue, files")] = ".runner"
    durability: Annotated[Literal["process", "power"], Meta(description="what accepted jobs survive: the process's death, or a power cut too")] = "process"
    max_queued_jobs: Annotated[int, Meta(ge=0, description="jobs of the queue that may wait")] = 100_000
    queue_expiry_seconds: Annotated[float, Meta(gt=0, description="how long results of the queue are kept")] = 7 * 24 * 3600.0
    queue_budget_bytes: Annotated[int, Meta(ge=0, description="size of kept results, above which the oldest go")] = 10 * 1024**3
    trusted_proxy: Annotated[list[str], Meta(description="address or network whose X-Forwarded headers count; may repeat")] = []
    auth_key: Annotated[list[str], Meta(description="key that callers must show; may repeat; none: everybody may call")] = []
    fal_gateway: Annotated[int, Meta(ge=-1, le=65535, description="port of a local proxy for unchanged fal clients; 0 picks one; -1: none")] = -1
    health_seconds: Annotated[float, Meta(gt=0, description="seconds between checks of the app's health")] = 15
    public_url: Annotated[str, Meta(pattern=r"^$|^https?://[^/?#\s]+[^?#\s]*$", description="address that callers see; default what each of them called")] = ""
    max_file_bytes: Annotated[int, Meta(ge=1, description="largest file to fetch, to take as an upload or to unpack")] = 4 * 1024 * 1024 * 1024
    max_stored_bytes: Annotated[int, Meta(ge=0, description="disk that stored files may take; 0 takes all but a reserve")] = 0
    file_seconds: Annotated[float, Meta(ge=0, description="life of a stored file when its request wishes none; 0 is for ever")] = 7 * 24 * 3600
    file_store: Annotated[str, Meta(pattern=r"^$|^s3://[^/\s]+(/\S*)?$", description="where files lie: s3://bucket/prefix; default below data-dir")] = ""
    file_store_url: Annotated[str, Meta(pattern=r"^$|^https?://\S+$", description="address under which that bucket is public; default presigned URLs")] = ""
    stall_seconds: Annotated[float, Meta(gt=0, description="after which an event loop that does not turn has all stacks written")] = 10
    stuck_seconds: Annotated[float, Meta(gt=0, description="after which cancelled work that does not leave has the process replaced")] = 30
    supervise: Annotated[bool, Meta(description="keep a parent that replaces the runner when it dies or falls ill")] = False
    reload: Annotated[bool, Meta(description="follow changes of the app's files, with the model kept where that is right")] = False
    listen_fd: Annotated[int, Meta(ge=-1, description="file descriptor of a socket that listens already; instead of host and port")] = -1
    ready_fd: Annotated[int, Meta(ge=-1, description="file descriptor that gets one JSON line when ready")] = -1


ACTIONS = {
    "openapi": "print the OpenAPI document and end",
    "check": "load the app, list its endpoints and plugins, and end",
}
EXAMPLES = {
    "port": "8000", "app_id": "local/my-app", "log_format": "json", "log_level": "info", "ready_fd": "3", "listen_fd": "3",
    "supervise": "true", "reload": "true", "file_store": "s3://my-bucket/files", "public_url": "https://models.example.com",
}  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; try: runner app:MyApp --port 8000")


def read_settings(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path
) -> tuple[str, Settings, str | None]:
    """Return the app's target, the settings and the action asked for (`openapi`, `check` or None).

    A flag beats the environment, which beats `runner.toml` or else `[tool.runner]` of
    `pyproject.toml` in `folder`. Raises ConfigError that names the flag, variable or key.
    """
    hints = get_type_hints(Settings, include_extras=True)
    parser = _Parser(prog="runner", description="Serve the endpoints of one app.", epilog="runner new NAME writes a new project.", allow_abbrev=False)
    parser.add_argument("target", metavar="MODULE:CLASS", help="the app: app:MyApp, path/to/app.py:MyApp or app.py::MyApp")
    for name, hint in hints.items():
        default = getattr(Settings(), name)
        help_text = hint.__metadata__[0].description + (f" (default {default})" if default not in ("", [], -1, False) else "")
        flag = "--" + name.replace("_", "-")
        if _is_bool(hint):
            parser.add_argument(flag, action="store_true", default=None, help=help_text)
        else:
            parser.add_argument(flag, action="append" if _is_list(hint) else "store", help=help_text, metavar=name.upper())
    actions = parser.add_mutually_exclusive_group()
    for name, help_text in ACTIONS.items():
        actions.add_argument(f"--{name}", action="store_true", help=help_text)

    given = vars(parser.parse_args(arguments))
    values = dict(_from_file(folder, hints))
    for name, hint in hints.items():
        variable = f"RUNNER_{name.upper()}"
        if given[name] is not None:
            values[name] = _checked(given[name], hint, name, f"--{name.replace('_', '-')}")
        elif variable in environment:
            text = environment[variable]
            raw: Any = [part for part in text.split(",") if part] if _is_list(hint) else text
            values[name] = _checked(raw, hint, name, variable)
    settings = Settings(**values)
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise ConfigError("--tls-cert and --tls-key go together: give both or neither")
    for name, file in (("--tls-cert", settings.tls_cert), ("--tls-key", settings.tls_key)):
        if file and not Path(file).is_file():
            raise ConfigError(f"{name}: there is no file {file!r}")
    return given["target"], settings, next((a for a in ACTIONS if given[a]), None)


def _is_bool(hint: Any) -> bool:
    return get_args(hint)[0] is bool


def _is_list(hint: Any) -> bool:
    return get_origin(get_args(hint)[0]) is list


def _from_file(folder: Path, hints: Mapping[str, Any]) -> Mapping[str, Any]:
    for file, keys in ((folder / "runner.toml", ()), (folder / "pyproject.toml", ("tool", "runner"))):
        if not file.is_file():
            continue
        import tomllib  # most starts have no such file

        try:
            table: Any = tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: {error}") from None
        for key in keys:
            table = table.get(key, {})
        if table:
            return {name: _checked(value, hints.get(name), name, f"{file}: {name}") for name, value in table.items()}
    return {}


def _checked(value: Any, hint: Any, name: str, where: str) -> Any:
    if hint is None:
        raise ConfigError(f"{where} is not a setting; known ones: {', '.join(Settings.__struct_fields__)}")
    try:
        return msgspec.convert(value, hint, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        example = EXAMPLES.get(name)
        hint_text = f"; for example {example}" if example else ""
        raise ConfigError(f"{where}: {value!r} will not do: {error}{hint_text}") from None

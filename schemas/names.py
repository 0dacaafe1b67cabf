"""All that a plugin may take from this floor: `runner` exports it, so that a stranger's plugin can do what ours do.

A test finds what is missing here.
"""

from .app import AppSpec, Options, derive_alias, read_options
from .asgi import Message, RawHeaders, Scope
from .codec import Codec
from .endpoint import Endpoint, Mark, Parameter, Retry, Source, check_path
from .events import Finished, OnOutput, OutputStream, as_sse
from .files import (
    Audio,
    Content,
    File,
    Image,
    Loc,
    Unfetchable,
    Video,
    checked_url,
    is_data,
    safe_name,
)
from .foreign import is_starlette
from .health import HealthCheck, State
from .origins import Origins
from .problems import (
    ConfigError,
    Fault,
    HTTPError,
    InvalidInput,
    InvalidOutput,
    RequestCancelled,
    RunnerError,
    ServerError,
    printable,
    stopped_problem,
)
from .queue import (
    ENDS,
    Delivery,
    Job,
    JobChange,
    JobHeaders,
    JobMove,
    JobOutcome,
    JobState,
    LogLine,
    Priority,
    QueueStore,
    Unstorable,
    advance_job,
)
from .request import Request, current_request
from .response import EVENTS, JSON, Response, StreamingResponse, json_response
from .routes import compiled
from .service import Bind, BindWrapper, Call, Check, Mount, Route, ServiceView, Wrapper
from .settings import Settings
from .tokens import Tokens, is_known
from .websocket import WebSocket, WebSocketDisconnect, WebSocketState

__all__ = [
    "ENDS", "EVENTS", "JSON", "AppSpec", "Audio", "Bind", "BindWrapper", "Call", "Check", "Codec", "ConfigError",
    "Content", "Delivery", "Endpoint", "Fault", "File", "Finished", "HTTPError", "HealthCheck", "Image",
    "InvalidInput", "InvalidOutput", "Job", "JobChange", "JobHeaders", "JobMove", "JobOutcome", "JobState", "Loc",
    "LogLine", "Mark", "Message", "Mount", "OnOutput", "Options", "Origins", "OutputStream", "Parameter",
    "Priority", "QueueStore", "RawHeaders", "Request", "RequestCancelled", "Response", "Retry", "Route",
    "RunnerError", "Scope", "ServerError", "ServiceView", "Settings", "Source", "State", "StreamingResponse",
    "Tokens", "Unfetchable", "Unstorable", "Video", "WebSocket", "WebSocketDisconnect", "WebSocketState", "Wrapper",
    "advance_job", "as_sse", "check_path", "checked_url", "compiled", "current_request", "derive_alias", "is_data",
    "is_known", "is_starlette", "json_response", "printable", "read_options", "safe_name", "stopped_problem",
]  # fmt: skip

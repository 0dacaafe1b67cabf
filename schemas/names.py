"""All that a plugin may take from this floor: `runner` exports it, so that a stranger's plugin can do what ours do.

A test finds what is missing here.
"""

from .app import AppSpec, Options, derive_alias, read_options
from .asgi import Message, RawHeaders, Scope
from .codec import Codec
from .endpoint import Endpoint, Mark, Parameter, Retry, Source, check_path
from .events import Finished, OnOutput, OutputStream, as_sse
from .files import (
    Content,
    Download,
    File,
    Loc,
    Unfetchable,
    Video,
    checked_url,
    decode_data_uri,
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
from .storing import (
    PLAIN_ERRAND,
    Errand,
    FileData,
    FileDepot,
    FileDescription,
    FilePlace,
    FileRepository,
    FileSink,
    FileStore,
    Repository,
    content_disposition,
    depot_of,
    enter_depot,
    file_chunks,
    lifetime_of,
    safe_media_type,
    store_file,
    store_output,
    type_and_name,
)
from .websocket import WebSocket, WebSocketDisconnect, WebSocketState

__all__ = [
    "ENDS", "EVENTS", "JSON", "PLAIN_ERRAND", "AppSpec", "Bind", "BindWrapper", "Call", "Check", "Codec",
    "ConfigError", "Content", "Delivery", "Download", "Endpoint", "Errand", "Fault", "File", "FileData", "FileDepot",
    "FileDescription", "FilePlace", "FileRepository", "FileSink", "FileStore", "Finished", "HTTPError", "HealthCheck",
    "InvalidInput", "InvalidOutput", "Job", "JobChange", "JobHeaders", "JobMove", "JobOutcome", "JobState", "Loc",
    "LogLine", "Mark", "Message", "Mount", "OnOutput", "Options", "Origins", "OutputStream", "Parameter", "Priority",
    "QueueStore", "RawHeaders", "Repository", "Request", "RequestCancelled", "Response", "Retry", "Route",
    "RunnerError", "Scope", "ServerError", "ServiceView", "Settings", "Source", "State", "StreamingResponse",
    "Unfetchable", "Unstorable", "Video", "WebSocket", "WebSocketDisconnect", "WebSocketState", "Wrapper",
    "advance_job", "as_sse", "check_path", "checked_url", "compiled", "content_disposition", "current_request",
    "decode_data_uri", "depot_of", "derive_alias", "enter_depot", "file_chunks", "is_data", "is_starlette",
    "json_response", "lifetime_of", "printable", "read_options", "safe_media_type", "safe_name", "stopped_problem",
    "store_file", "store_output", "type_and_name",
]  # fmt: skip

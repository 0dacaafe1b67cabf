"""The same in FastAPI, for uvicorn: what `bench/streaming.py` measures beside the runner."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

app = FastAPI()


def event(i: int) -> str:
    return f"data: {json.dumps({'i': i, 'text': 'a token of a model'})}\n\n"


@app.post("/sync")
def sync(n: int) -> StreamingResponse:
    def tokens() -> Iterator[str]:
        for i in range(n):
            yield event(i)

    return StreamingResponse(tokens(), media_type="text/event-stream")


@app.post("/async")
async def asynchronous(n: int) -> StreamingResponse:
    async def tokens() -> AsyncIterator[str]:
        for i in range(n):
            yield event(i)

    return StreamingResponse(tokens(), media_type="text/event-stream")


@app.websocket("/ws-raw")
async def ws_raw(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_bytes(await websocket.receive_bytes())
    except WebSocketDisconnect:
        pass

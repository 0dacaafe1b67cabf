"""The typed endpoint with no framework: an ASGI app by hand, for uvicorn and hypercorn. The limit of each server."""

import msgspec


class Input(msgspec.Struct):
    prompt: str
    steps: int = 20


class Output(msgspec.Struct):
    text: str
    steps: int


decode = msgspec.json.Decoder(Input).decode
encode = msgspec.json.Encoder().encode


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    asked = decode(body)
    answer = encode(Output(asked.prompt, asked.steps))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})

"""The typed endpoint in FastAPI, sync (in its thread pool) and async, with pydantic models as its manual has it."""

from fastapi import FastAPI
from pydantic import BaseModel


class Input(BaseModel):
    prompt: str
    steps: int = 20


class Output(BaseModel):
    text: str
    steps: int


app = FastAPI()


@app.post("/sync")
def sync(input: Input) -> Output:
    return Output(text=input.prompt, steps=input.steps)


@app.post("/async")
async def on_the_loop(input: Input) -> Output:
    return Output(text=input.prompt, steps=input.steps)

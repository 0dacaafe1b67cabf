"""The typed endpoint as a fal app, in the FastAPI application that the fal package serves it with."""

import fal
from pydantic import BaseModel


class Input(BaseModel):
    prompt: str
    steps: int = 20


class Output(BaseModel):
    text: str
    steps: int


class Peer(fal.App):
    @fal.endpoint("/sync")
    def sync(self, input: Input) -> Output:
        return Output(text=input.prompt, steps=input.steps)

    @fal.endpoint("/async")
    async def on_the_loop(self, input: Input) -> Output:
        return Output(text=input.prompt, steps=input.steps)


app = Peer(_allow_init=True)._build_app()

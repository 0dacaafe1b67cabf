"""The typed endpoint as an app of ours, sync and async. All default plugins are on."""

import msgspec

import runner


class Input(msgspec.Struct):
    prompt: str
    steps: int = 20


class Output(msgspec.Struct):
    text: str
    steps: int


class Peer(runner.App):
    max_multiplexing = 64

    @runner.endpoint("/sync")
    def sync(self, input: Input) -> Output:
        return Output(text=input.prompt, steps=input.steps)

    @runner.endpoint("/async")
    async def on_the_loop(self, input: Input) -> Output:
        return Output(text=input.prompt, steps=input.steps)

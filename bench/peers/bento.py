"""The typed endpoint in BentoML: one worker, sync and async, no access log, no metrics, no traces."""

import bentoml
from pydantic import BaseModel


class Output(BaseModel):
    text: str
    steps: int


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Peer:
    @bentoml.api(route="/sync")
    def sync(self, prompt: str, steps: int = 20) -> Output:
        return Output(text=prompt, steps=steps)

    @bentoml.api(route="/async")
    async def on_the_loop(self, prompt: str, steps: int = 20) -> Output:
        return Output(text=prompt, steps=steps)

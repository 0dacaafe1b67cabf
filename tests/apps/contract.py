"""An app written for fal, with an endpoint for each line of the contract that a runner must keep."""

import asyncio
import os
import threading
from typing import Literal

import fal
from fal.exceptions import AppException, FieldException, GPUException, RequestCancelledException
from fal.toolkit import FalBaseModel, Hidden
from pydantic import BaseModel, Field

import runner


class Input(BaseModel):
    prompt: str


class Limits(BaseModel):
    n: int = Field(default=1, le=4)
    kind: Literal["a", "b"] = "a"


class Output(BaseModel):
    text: str


class Secretive(FalBaseModel):
    prompt: str
    debug: bool = Hidden(Field(default=False))


class Order(BaseModel):
    kind: str


def errors(kind):
    return {
        "app": AppException("no entry", 401),
        "field": FieldException("prompt", "too rude"),
        "field billed": FieldException("prompt", "too rude", billable_units=5),
        "field billed in part": FieldException("prompt", "too rude", billable_units=0.0000123),
        "field billed wrongly": FieldException("prompt", "too rude", billable_units="many"),
        "cancelled": RequestCancelledException(),
        "gpu": GPUException(),
        "out of memory": RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
        "triton": ValueError("triton x"),
        "bug": ValueError("a bug"),
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "base": BaseException("bare"),
        "cancel": asyncio.CancelledError(),
        "deep": runner.HTTPError(418, {"reason": "teapot"}, {"x-reason": "tea"}),
    }[kind]


class Contract(fal.App, name="contract"):
    max_multiplexing = 8

    def setup(self):
        self.state_in_setup = os.environ["FAL_RUNNER_STATE"]
        self.meeting = threading.Barrier(2)
        self.first_in, self.second_in = asyncio.Event(), asyncio.Event()

    def provide_hints(self):
        return ["a", "b", "日本"]

    @fal.endpoint("/")
    def generate(self, input: Input) -> Output:
        return Output(text=input.prompt)

    @fal.endpoint("/limits")
    def limits(self, input: Limits) -> Limits:
        return input

    @fal.endpoint("/mapping")
    def mapping(self, data: dict) -> dict:
        return data

    @fal.endpoint("/list")
    def numbers(self, data: list[int]) -> list[int]:
        return data

    @fal.endpoint("/two")
    def two(self, first: Input, second: Limits) -> dict:
        return {"first": first.prompt, "second": second.n}

    @fal.endpoint("/scalar")
    def scalar(self, prompt: str) -> str:
        return prompt

    @fal.endpoint("/optional")
    def optional(self, input: Input | None = None) -> str | None:
        return input and input.prompt

    @fal.endpoint("/nothing")
    def nothing(self):
        return None

    @fal.endpoint("/header")
    def header(self, x_fal_request_id: str = runner.Header(None)) -> list:
        return [x_fal_request_id, self.current_request.request_id]

    @fal.endpoint("/context")
    def context(self) -> dict:
        request = self.current_request
        return {
            "id": request.request_id, "endpoint": request.endpoint,
            "lifecycle": request.lifecycle_preference, "custom": request.headers.get("x-custom"),
        }  # fmt: skip

    @fal.endpoint("/renew")
    def renew(self) -> None:
        self.current_request.headers["x-fal-cdn-token"] = "new"

    @fal.endpoint("/meet")
    def meet(self) -> list:
        before = self.current_request.request_id
        self.meeting.wait(20)
        return [before, self.current_request.request_id]

    @fal.endpoint("/meet-async")
    async def meet_async(self) -> list:
        before = self.current_request.request_id
        mine, other = (self.second_in, self.first_in) if self.first_in.is_set() else (self.first_in, self.second_in)
        mine.set()
        await other.wait()
        return [before, self.current_request.request_id]

    @fal.endpoint("/state")
    def state(self) -> list:
        return [self.state_in_setup, os.environ["FAL_RUNNER_STATE"]]

    @fal.endpoint("/fail")
    def fail(self, order: Order) -> str:
        raise errors(order.kind)

    @fal.endpoint("/fail-async")
    async def fail_async(self, order: Order) -> str:
        raise errors(order.kind)

    @fal.endpoint("/misfit")
    def misfit(self) -> Output:
        return {"text": 5}

    @fal.endpoint("/secretive")
    def secretive(self, input: Secretive) -> bool:
        return input.debug

    @fal.endpoint("/units")
    def units(self, response: runner.Response) -> str:
        response.headers["x-fal-billable-units"] = "7"
        return "billed"

    @fal.endpoint("/items/{number}")
    def items(self, number: int) -> int:
        return number

    @fal.realtime("/realtime")
    def realtime(self, input: Input) -> Output:
        return Output(text=input.prompt)

"""A queue store without a disk: what it was told stays while the test lives, whoever else dies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from runner.schemas.queue import Delivery, Job, JobChange, JobOutcome, advance_job


class Disk:
    """What outlives a process."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.inputs: dict[str, bytes] = {}
        self.outcomes: dict[str, JobOutcome] = {}
        self.deliveries: dict[str, Delivery] = {}
        self.changes: list[tuple[str, JobChange]] = []  # that were made


class MemoryStore:
    """A process's view of a `Disk`. Each step takes a turn of the loop before and after, as a real store would."""

    exists = True

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._is_dead = False

    def kill(self) -> None:
        """The process dies: what it still asks is never done nor answered."""
        self._is_dead = True

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self._is_dead:
            await asyncio.get_running_loop().create_future()

    async def open(self) -> Sequence[Job]:
        await self._turn()
        return sorted((job for job in self._disk.jobs.values() if not job.is_over), key=lambda job: job.number)

    async def submit(self, job: Job, body: bytes) -> Job:
        await self._turn()
        known = next((found for found in self._disk.jobs.values() if job.key is not None and found.key == job.key), None)
        if known is None:
            if job.id in self._disk.jobs:
                raise KeyError(job.id)
            known = self._disk.jobs[job.id] = msgspec.structs.replace(job, number=len(self._disk.jobs) + 1)
            self._disk.inputs[job.id] = body
        await self._turn()
        return known

    async def change(self, id: str, change: JobChange) -> Job | None:
        await self._turn()
        job = self._disk.jobs.get(id)
        moved = advance_job(job, change) if job is not None else None
        if moved is not None:
            self._disk.jobs[id] = moved
            self._disk.changes.append((id, change))
            if change.outcome is not None:
                self._disk.outcomes[id] = change.outcome
            if moved.is_over:
                self._disk.inputs.pop(id, None)
                if moved.webhook:
                    self._disk.deliveries[id] = Delivery(id=id, url=moved.webhook)
        await self._turn()
        return moved

    async def load(self, id: str) -> Job | None:
        await self._turn()
        return self._disk.jobs.get(id)

    async def input(self, id: str) -> bytes:
        await self._turn()
        return self._disk.inputs[id]

    async def outcome(self, id: str) -> JobOutcome | None:
        await self._turn()
        return self._disk.outcomes.get(id)

    async def deliveries(self) -> Sequence[Delivery]:
        await self._turn()
        return list(self._disk.deliveries.values())

    async def deliver_later(self, id: str, due: float) -> None:
        await self._turn()
        owed = self._disk.deliveries[id]
        self._disk.deliveries[id] = msgspec.structs.replace(owed, attempts=owed.attempts + 1, due=due)

    async def delivered(self, id: str) -> None:
        await self._turn()
        self._disk.deliveries.pop(id, None)

    async def sweep(self, *, ended_before: float, let_go_before: float, budget_bytes: int) -> int:
        await self._turn()
        held, gone = 0, []
        for job in sorted(self._disk.jobs.values(), key=lambda job: -(job.ended or 0.0)):
            if job.ended is None or job.id in self._disk.deliveries:
                continue
            held += len(self._disk.outcomes[job.id].body)
            if job.ended < (ended_before if job.keeps else let_go_before) or held > budget_bytes:
                gone.append(job.id)
        for id in gone:
            del self._disk.jobs[id], self._disk.outcomes[id]
        return len(gone)

    async def check(self) -> None:
        await self._turn()

    async def close(self) -> None:
        await asyncio.sleep(0)

"""Operations: states, progress, waiting, cancelling."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from target.management import operations as module
from target.management.operations import Operation, Operations
from target.management.refusal import Refused


def run(test: Callable[[Operations], Awaitable[None]]) -> None:
    async def main() -> None:
        operations = Operations()
        try:
            await test(operations)
        finally:
            await operations.close()

    asyncio.run(main())


async def answer(_operation: Operation) -> dict[str, Any]:
    return {"n": 42}


async def forever(_operation: Operation) -> None:
    await asyncio.Event().wait()


def test_an_operation_ends_with_its_result() -> None:
    async def test(operations: Operations) -> None:
        operation = await operations.wait(operations.start("k", "s", answer).id, 60)
        assert (operation.state, operation.result, operation.percent) == ("done", {"n": 42}, 100.0)

    run(test)


def test_a_refusal_becomes_the_operations_error() -> None:
    async def refuse(_operation: Operation) -> None:
        raise Refused("no-space", "make room")

    async def test(operations: Operations) -> None:
        operation = await operations.wait(operations.start("k", "s", refuse).id, 60)
        assert operation.state == "failed"
        assert operation.error is not None
        assert operation.error.name == "no-space"

    run(test)


def test_waiting_gives_up_after_its_time_and_leaves_the_operation_running() -> None:
    async def test(operations: Operations) -> None:
        operation = await operations.wait(operations.start("k", "s", forever).id, 0)
        assert operation.state == "running"

    run(test)


@pytest.mark.parametrize("steps", [0, 3])
def test_cancelling_answers_when_it_has_stopped(steps: int) -> None:
    async def test(operations: Operations) -> None:
        started = operations.start("k", "s", forever)
        for _ in range(steps):
            await asyncio.sleep(0)
        assert (await operations.cancel(started.id)).state == "cancelled"

    run(test)


def test_what_has_ended_stays_as_it_is() -> None:
    async def test(operations: Operations) -> None:
        operation = await operations.wait(operations.start("k", "s", answer).id, 60)
        assert (await operations.cancel(operation.id)).state == "done"

    run(test)


def test_progress_never_goes_back_and_is_complete_only_at_the_end() -> None:
    operation = Operation("1", "k", "s", 0.0)
    operation.progress(80, 100)
    operation.progress(50, 100)
    assert operation.completed == 80
    operation.progress(100, 100)
    assert operation.percent == 99.9


def test_old_finished_operations_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FINISHED_KEPT", 2)

    async def test(operations: Operations) -> None:
        for _ in range(5):
            started = operations.start("k", "s", answer)
            await started.finished.wait()
        assert [operation.id for operation in operations.list()] == ["4", "5"]
        with pytest.raises(Refused):
            operations.get("1")

    run(test)

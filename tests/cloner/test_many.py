"""Many jobs at once: who is at work, who waits, and how much each one gets."""

from __future__ import annotations

import asyncio

import pytest

from cloner import CloneOptions, JobState, Priority
from cloner.queue import RunQueue, Ticket
from cloner.turns import Share, Turns
from tests.cloner.test_manager import Daemon, daemon, record_installs
from tests.cloner.test_review import until
from tests.support.clones import GOLDEN_BLOCKS, GOLDEN_BYTES, Family, add_clone, make_family, read_all
from tests.support.volumes import MIB, Workshop
from wafl import BLOCK_BYTES

SLOW = CloneOptions(limit_bytes_s=BLOCK_BYTES)
LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH


def litter(workshop: Workshop, names: list[str], size_bytes: int = 16 * MIB) -> Family:
    family = make_family(workshop, size_bytes)
    for name in names:
        family.volume.create_lun(name, None, backing=("base", "golden"))
    return family


def states(d: Daemon) -> dict[str, str]:
    return {status.lun: status.state or "" for status in d.manager.show()}


async def settled(d: Daemon) -> dict[str, str]:
    """The states once no request waits for its consistency point."""
    await until(lambda: JobState.CREATED not in states(d).values())
    return states(d)


def tickets(*priorities: Priority) -> list[Ticket]:
    return [Ticket(position, priority) for position, priority in enumerate(priorities)]


def admitted(made: list[Ticket]) -> list[int]:
    return [ticket.position for ticket in made if ticket.admitted.is_set()]


# -- the queue


def test_the_first_come_are_admitted_first() -> None:
    queue, made = RunQueue(2), tickets(NORMAL, NORMAL, NORMAL, NORMAL)
    for ticket in reversed(made):
        queue.join(ticket)
    assert admitted(made) == [0, 1]
    assert [queue.place(ticket) for ticket in made] == [None, None, 0, 1]
    queue.leave(made[0])
    assert admitted(made) == [1, 2]


def test_a_higher_priority_takes_the_place_of_a_lower_one() -> None:
    queue, made = RunQueue(2), tickets(LOW, NORMAL, NORMAL, HIGH)
    for ticket in made[:2]:
        queue.join(ticket)
    assert admitted(made) == [0, 1]
    queue.join(made[2])
    assert admitted(made) == [1, 2]
    queue.join(made[3])
    assert admitted(made) == [1, 3]
    made[0].priority = HIGH
    queue.settle()
    assert admitted(made) == [0, 3]


def test_a_limit_that_is_changed_admits_or_takes_back() -> None:
    queue, made = RunQueue(1), tickets(NORMAL, NORMAL, NORMAL)
    for ticket in made:
        queue.join(ticket)
    queue.set_limit(3)
    assert admitted(made) == [0, 1, 2]
    queue.set_limit(2)
    assert admitted(made) == [0, 1]


# -- shares


def test_turns_follow_the_weights_and_starve_nobody() -> None:
    async def main() -> None:
        turns, taken = Turns(lambda: 1), {1: 0, 4: 0, 16: 0}

        async def work(weight: int) -> None:
            share = Share(weight)
            await turns.enter(share)
            while sum(taken.values()) < 420:
                taken[weight] += 1
                await asyncio.sleep(0)
                share.charge(1000)
                await turns.enter(share, leaving=True)
            turns.leave()

        await asyncio.gather(*(work(weight) for weight in taken))
        assert taken[1] == pytest.approx(20, abs=3)
        assert taken[4] == pytest.approx(80, abs=6)

    asyncio.run(main())


def test_who_comes_late_has_saved_nothing_up() -> None:
    async def main() -> None:
        turns, old, new, order = Turns(lambda: 1), Share(4), Share(4), []

        async def work(share: Share, times: int) -> None:
            for _ in range(times):
                await turns.enter(share)
                order.append(share)
                await asyncio.sleep(0)
                share.charge(1000)
                turns.leave()

        first = asyncio.create_task(work(old, 40))
        while len(order) < 20:
            await asyncio.sleep(0)
        await asyncio.gather(first, work(new, 10))
        both = order[order.index(new) :][:20]
        assert 9 <= both.count(new) <= 11

    asyncio.run(main())


def test_whoever_gives_up_waiting_leaves_no_turn_behind() -> None:
    async def main() -> None:
        turns = Turns(lambda: 1)
        await turns.enter(Share(1))
        waiting = [asyncio.create_task(turns.enter(Share(1))) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        turns.leave()  # grants the second, which is cancelled before it has run
        waiting[1].cancel()
        await asyncio.wait(waiting)
        assert waiting[2].exception() is None

    asyncio.run(main())


# -- jobs


def test_jobs_beyond_the_limit_wait_and_are_seen_to(workshop: Workshop) -> None:
    async def main() -> None:
        names = ["b", "c", "d"]
        async with daemon(litter(workshop, names), running_jobs=2) as d:
            for name in ["clone", *names]:
                d.manager.start(d.service, name, SLOW)
            assert await settled(d) == {"clone": "running", "b": "running", "c": "queued", "d": "queued"}
            assert [status.queue_place for status in d.manager.show()] == [None, None, 0, 1]
            await d.manager.stop(d.service, "clone")
            await until(lambda: states(d)["c"] == "running")
            assert d.manager.status(d.service, "d").queue_place == 0

    asyncio.run(main())


def test_a_job_of_higher_priority_goes_first_and_the_other_goes_on_later(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(litter(workshop, ["b"]), running_jobs=1) as d:
            d.manager.start(d.service, "clone", SLOW)
            await until(lambda: d.manager.status(d.service, "clone").copied_blocks > 3)
            d.manager.start(d.service, "b", CloneOptions(limit_bytes_s=BLOCK_BYTES, priority=HIGH))
            await until(lambda: states(d) == {"clone": "queued", "b": "running"})
            copied = d.manager.status(d.service, "clone").copied_blocks
            d.manager.set_options(d.service, "b", CloneOptions(priority=HIGH))
            await d.manager.wait(d.service, "b")
            d.manager.set_options(d.service, "clone", CloneOptions())
            await d.manager.wait(d.service, "clone")
            assert d.manager.status(d.service, "clone").copied_blocks == len(GOLDEN_BLOCKS) > copied
            assert d.family.reads_right()

    asyncio.run(main())


def test_a_priority_is_a_share_of_what_is_copied(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(litter(workshop, ["low", "high"], 24 * MIB)) as d:
            d.manager._shared.polite._capacity = lambda: 1
            installs: list[str] = []
            wanted = {"low": LOW, "clone": NORMAL, "high": HIGH}
            for name in wanted:
                record_installs(d.family, name, installs)
            # The limits only make the chunks small.
            for name, priority in wanted.items():
                d.manager.start(d.service, name, CloneOptions(limit_bytes_s=8 * BLOCK_BYTES, priority=priority))

            for name in wanted:
                job = d.manager._active_job(d.service, name)
                job._bucket.set_rate(None, 0.0)
            await until(lambda: len(installs) == len(wanted) * len(GOLDEN_BLOCKS))
            first = installs[: installs.index("high") + 36]
            assert first.count("high") > 2 * first.count("clone") > 2 * first.count("low")
            assert "low" in installs[: len(GOLDEN_BLOCKS) + 30]

    asyncio.run(main())


def test_a_paused_job_leaves_its_place_to_others(workshop: Workshop) -> None:
    async def main() -> None:
        family = make_family(workshop, size_bytes=8 * MIB, blocks=list(range(600)))
        add_clone(family.volume, "empty").unmap(0, GOLDEN_BYTES)
        filler = family.volume.create_lun("filler", 8 * MIB)
        async with daemon(family, running_jobs=1) as d:
            written = 0
            while family.volume.space().available > MIB:
                filler.write(written, bytes(range(1, 129)) * (MIB // 1024))
                written += MIB // 8
                await d.service.commit()
            d.manager.start(d.service, "clone", force=True)
            await until(lambda: states(d)["clone"] == "paused")
            # It misses nothing, so it needs no room.
            d.manager.start(d.service, "empty", force=True)
            await d.manager.wait(d.service, "empty")
            assert states(d) == {"clone": "paused", "empty": "completed"}
            family.volume.destroy_lun("filler")
            d.service.kick_reclaim()
            await d.manager.wait(d.service, "clone")
            assert d.kinds() == ["started", "paused", "resumed", "completed"]

    asyncio.run(main())


def test_fewer_places_take_them_from_the_youngest(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(litter(workshop, ["b", "c"])) as d:
            for name in ("clone", "b", "c"):
                d.manager.start(d.service, name, SLOW)
            assert set((await settled(d)).values()) == {"running"}
            d.manager.set_running_jobs(1)
            await until(lambda: states(d) == {"clone": "running", "b": "queued", "c": "queued"})
            for wrong in (0, 1001):
                with pytest.raises(ValueError, match="1 to 1000"):
                    d.manager.set_running_jobs(wrong)

    asyncio.run(main())


def test_a_queued_job_stops_at_once_and_leaves_when_its_lun_is_destroyed(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(litter(workshop, ["b", "c"]), running_jobs=1) as d:
            for name in ("clone", "b", "c"):
                d.manager.start(d.service, name, SLOW)
            await settled(d)
            assert (await d.manager.stop(d.service, "b")).state is JobState.STOPPED
            assert not d.family.volume.lun("b").clone_requested
            d.family.volume.destroy_lun("c")
            await until(lambda: "c" not in states(d))
            assert d.kinds("c") == ["started", "stopped"]

    asyncio.run(main())


def test_what_a_job_is_asked_for_may_change_while_it_runs(workshop: Workshop) -> None:
    async def main() -> None:
        async with daemon(make_family(workshop)) as d:
            d.manager.start(d.service, "clone", SLOW)
            await until(lambda: d.manager.status(d.service, "clone").copied_blocks > 2)
            began = d.time.now
            d.manager.set_options(d.service, "clone", CloneOptions(limit_bytes_s=100 * BLOCK_BYTES))
            await d.manager.wait(d.service, "clone")
            assert d.time.now - began < len(GOLDEN_BLOCKS) / 10

    asyncio.run(main())


def test_a_hundred_jobs_at_once_all_end_right(workshop: Workshop) -> None:
    names = [f"clone{number:03}" for number in range(100)]

    async def main() -> None:
        family = litter(workshop, names, 64 * MIB)
        async with daemon(family) as d:
            most = 0

            def at_work() -> bool:
                nonlocal most
                found = list(states(d).values())
                most = max(most, found.count("running"))
                return all(state == "completed" for state in found)

            for name in names:
                d.manager.start(d.service, name, CloneOptions(limit_bytes_s=100 * BLOCK_BYTES))
            while not at_work():
                for _ in range(200):
                    await asyncio.sleep(0)
            assert most == d.manager.running_jobs
            ended = [event.lun for event in d.events if event.kind == "lun.clone.completed"]
            # Eight work side by side, so who came first is done among the first.
            assert all(abs(names.index(lun) - place) <= 16 for place, lun in enumerate(ended))
            expected = family.golden.read(0, GOLDEN_BYTES)
            for name in names:
                assert read_all(family.volume.lun(name)) == expected
            assert d.manager.show()[0].copied_blocks == len(GOLDEN_BLOCKS)
            assert family.volume.snapshot("base").busy_holders == ["clone"]

    asyncio.run(main())


def test_jobs_restart_in_the_order_and_with_the_options_they_had(workshop: Workshop) -> None:
    async def main() -> None:
        family = litter(workshop, ["b", "c"])
        for name in ("b", "c", "clone"):
            family.volume.lun(name).set_clone_requested(True)
        asked = {
            "clone": (CloneOptions(limit_bytes_s=BLOCK_BYTES, priority=LOW), 7),
            "b": (SLOW, 9),
            "c": (SLOW, 4),
        }
        async with daemon(family, running_jobs=1) as d:
            assert d.manager.restart_requested(d.service, lambda lun: asked[lun.name]) == ["c", "clone", "b"]
            await settled(d)
            assert states(d) == {"c": "running", "clone": "queued", "b": "queued"}
            assert [status.queue_place for status in d.manager.show()] == [None, 1, 0]
            assert d.manager.status(d.service, "clone").options.priority is LOW
            assert d.manager.next_position() > 9

    asyncio.run(main())

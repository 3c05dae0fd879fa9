"""What logical units keep in the settings: there after a restart, gone with the LUN and the volume."""

from __future__ import annotations

import asyncio

from target.iscsi.ports import Response
from target.nexus import Nexus, TargetDevice, lun_field
from target.scsi.unit import LogicalUnit
from tests.support.scsi_host import key_asc, reserve_in, reserve_out, reserve_out_list, sanitize
from tests.target.management.conftest import Api, Play

APTPL = 0x01


def served(api: Api) -> LogicalUnit:
    (unit,) = api.core.served["vol0"].luns.values()
    return unit


async def send(nexus: Nexus, cdb: bytes, data: bytes = b"") -> Response:
    """One command, to its end, past unit attentions."""
    over: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    response = nexus.execute(lun_field(0), cdb.ljust(16, b"\0"), 1, memoryview(data), 1, over.set_result)
    response = response or await over
    if response.status == 2 and key_asc(response)[0] == 6:
        return await send(nexus, cdb, data)
    return response


def nexus_of(api: Api, name: str = "iqn.host:a") -> Nexus:
    return TargetDevice("iqn.test").open_nexus(name, b"\x80abcde", {0: served(api)})


def test_a_new_serial_is_an_inquiry_data_change(play: Play) -> None:
    async def scene(api: Api) -> None:
        await api.volume()
        await api.lun()
        nexus = nexus_of(api)
        await send(nexus, bytes(6))
        await api.call("PATCH", "/luns/vol0/lun0", {"online": False})
        await api.call("PATCH", "/luns/vol0/lun0", {"serial": "ABC-123", "online": True})
        attention = nexus.execute(lun_field(0), bytes(16), 1, memoryview(b""), 1, lambda _: None)
        assert attention is not None
        assert key_asc(attention) == (6, 0x3F03)
        inquiry = bytes((0x12, 1, 0x80, 0, 64)).ljust(16, b"\0")
        assert bytes((await send(nexus, inquiry)).data)[4:] == b"ABC-123"
        nexus.close()

    play(scene)


def test_a_reservation_with_aptpl_is_there_after_a_restart(play: Play) -> None:
    async def reserve(api: Api) -> None:
        await api.volume()
        await api.lun()
        nexus = nexus_of(api)
        assert (await send(nexus, reserve_out(0), reserve_out_list(0, 5, APTPL))).status == 0
        assert (await send(nexus, reserve_out(1, 1), reserve_out_list(5))).status == 0
        assert api.core.state.lun_values
        nexus.close()

    async def look(api: Api) -> None:
        nexus = nexus_of(api, "iqn.host:b")
        assert (await send(nexus, bytes((0x2A, *bytes(7), 1, 0)), bytes(512))).status == 0x18
        keys = await send(nexus, reserve_in(0))
        assert bytes(keys.data)[8:] == (5).to_bytes(8, "big")
        nexus.close()
        await api.call("DELETE", "/luns/vol0/lun0")
        assert not api.core.state.lun_values

    play(reserve, look)


def test_a_sanitize_that_a_restart_interrupts_is_done_after_it(play: Play) -> None:
    async def begin(api: Api) -> None:
        await api.volume(size_bytes=256 << 20)
        await api.lun(size_bytes=64 << 20, reserved=False)
        nexus = nexus_of(api)
        parameters = bytes((1, 0, 0, 1)) + b"z"
        assert (await send(nexus, sanitize(1, len(parameters), 0x80), parameters)).status == 0
        while not api.core.state.lun_values:
            await asyncio.sleep(0)
        nexus.close()

    async def finish(api: Api) -> None:
        unit = served(api)
        assert unit.erasure.running
        while unit.erasure.running:
            await asyncio.sleep(0)
        found = bytearray(512)
        unit.store.read_into(unit.store.size_bytes - 512, memoryview(found))
        assert bytes(found) == b"z" * 512
        heard = [event.message for event in api.core.events.since(0) if event.kind == "lun.erasure"]
        assert heard == ["/vol/vol0/lun0: sanitize begins", "/vol/vol0/lun0: sanitize is complete"]
        assert not api.core.state.lun_values

    play(begin, finish)


def test_destroying_a_volume_forgets_what_its_luns_kept(play: Play) -> None:
    async def destroy(api: Api) -> None:
        await api.volume()
        await api.lun()
        await api.call("PATCH", "/luns/vol0/lun0", {"removable": True})
        assert api.core.state.lun_values
        await api.call("DELETE", "/luns/vol0/lun0")
        await api.lun("/vol/vol0/lun1")
        await api.call("PATCH", "/luns/vol0/lun1", {"removable": True})
        await api.call("DELETE", "/volumes/vol0", force=True)
        assert not api.core.state.lun_values

    play(destroy)


def test_a_lun_destroyed_in_the_middle_of_a_sanitize_leaves_nothing_behind(play: Play) -> None:
    async def destroy(api: Api) -> None:
        await api.volume(size_bytes=256 << 20)
        await api.lun(size_bytes=64 << 20, reserved=False)
        nexus = nexus_of(api)
        parameters = bytes((1, 0, 0, 1)) + b"z"
        await send(nexus, sanitize(1, len(parameters), 0x80), parameters)
        unit = served(api)
        while not api.core.state.lun_values:
            await asyncio.sleep(0)
        nexus.close()
        await api.call("DELETE", "/luns/vol0/lun0")
        while unit.erasure.running:
            await asyncio.sleep(0)
        await api.lun("/vol/vol0/lun1")
        assert not api.core.state.lun_values

    play(destroy)


def test_a_lun_that_a_restored_volume_does_not_have_leaves_nothing_behind(play: Play) -> None:
    async def restore(api: Api) -> None:
        await api.volume(size_bytes=256 << 20)
        await api.post("/volumes/vol0/snapshots", {"name": "base"})
        await api.lun()
        await api.call("PATCH", "/luns/vol0/lun0", {"removable": True})
        await api.post("/volumes/vol0/snapshots/base/restore", {"force": True})
        assert not api.core.state.lun_values

    play(restore)

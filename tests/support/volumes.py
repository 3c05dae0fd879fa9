"""Volumes in memory for tests, and the rule that a volume is checked after every test that touched one.

    def test_something(workshop: Workshop) -> None:
        volume = workshop.format()
        ...
        checkpoint(volume)

When the test ends, each volume still mounted passes a consistency point, is closed, and its checker must find
nothing.  The fixture lives in tests/conftest.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.support.crash_device import MemoryDevice
from wafl import BLOCK_BYTES, Lun, Step, Volume
from wafl.check import Finding, Severity, check

MIB = 1 << 20
EPOCH = 1_700_000_000.0


def checkpoint(volume: Volume, between: Callable[[], None] = lambda: None) -> None:
    """One consistency point, start to end; `between` runs at every place where guests could."""
    run_steps(volume, volume.checkpoint(), between)


def reclaim(volume: Volume) -> None:
    """Give back all that destroyed LUNs and deleted snapshots held, and make it allocatable."""
    run_steps(volume, volume.reclaim())
    checkpoint(volume)
    checkpoint(volume)


def run_steps(volume: Volume, steps: Iterator[Step], between: Callable[[], None] = lambda: None) -> None:
    for step in steps:
        between()
        if step is Step.SYNC:
            volume.device.sync()
            between()


def take_snapshot(volume: Volume, name: str) -> None:
    volume.request_snapshot(name)
    checkpoint(volume)


def problems(device: MemoryDevice) -> list[Finding]:
    """What the checker says but for notes."""
    return [finding for finding in check(device) if finding.severity > Severity.NOTE]


def errors(device: MemoryDevice) -> list[str]:
    """What the checker calls an error."""
    return [str(finding) for finding in check(device) if finding.severity is Severity.ERROR]


def pattern(seed: int, length: int) -> bytes:
    """`length` bytes, never zero, that differ by `seed` in every 16 bytes."""
    unit = b"%015d|" % (seed % 10**15)
    return (unit * (length // len(unit) + 1))[:length]


class Workshop:
    def __init__(self) -> None:
        self._mounted: list[Volume] = []

    def format(self, size_bytes: int = 16 * MIB, name: str = "vol0", log_bytes: int | None = None) -> Volume:
        device = MemoryDevice(bytearray(size_bytes))
        Volume.format(device, name=name, now=EPOCH, log_bytes=log_bytes)
        return self.mount(device)

    def mount(self, device: MemoryDevice) -> Volume:
        volume = Volume.mount(device)
        self._mounted.append(volume)
        return volume

    def remount(self, volume: Volume) -> Volume:
        """Close in order and mount again."""
        device = volume.device
        self.close(volume)
        return self.mount(device)  # type: ignore[arg-type]

    def crash(self, volume: Volume) -> Volume:
        """Mount what a killed daemon leaves, every write in place; without a log, the last consistency point."""
        self._mounted.remove(volume)
        return self.mount(MemoryDevice(bytearray(volume.device.image)))  # type: ignore[attr-defined]

    def close(self, volume: Volume) -> None:
        self._mounted.remove(volume)
        volume.close()
        found = problems(volume.device)  # type: ignore[arg-type]
        assert not found, "\n".join(map(str, found))

    def abandon(self, volume: Volume) -> None:
        """The test damaged this one on purpose."""
        self._mounted.remove(volume)

    def finish(self) -> None:
        for volume in list(self._mounted):
            self.close(volume)


def lun_of_kind(volume: Volume, kind: str, size_bytes: int) -> Lun:
    """A LUN called "lun": "plain", "reserved", or "backed" by a snapshot with every third block written."""
    if kind != "backed":
        return volume.create_lun("lun", size_bytes, reserved=kind == "reserved")
    parent = volume.create_lun("parent", size_bytes)
    for number in range(0, size_bytes // BLOCK_BYTES, 3):
        parent.write(number * BLOCK_BYTES, pattern(number + 9, BLOCK_BYTES))
    take_snapshot(volume, "s")
    return volume.create_lun("lun", backing=("s", "parent"), reserved=False)


def fill_all(lun: Lun) -> int:
    """Copy all that the LUN misses of its backing; the blocks that it took."""
    filled = 0
    index = lun.next_missing(0)
    while index is not None:
        while (plan := lun.plan_fill(index)) is not None:
            filled += lun.install_fill(plan, plan.read())
            plan.release()
        index = lun.next_missing(index + 1)
    return filled


def sharing_volume(size_bytes: int, **options: int) -> tuple[MemoryDevice, Volume]:
    """Two LUNs, "a" and "b", and a snapshot "s"; the blocks they share are older than the snapshot, and younger."""
    device = MemoryDevice(bytearray(size_bytes))
    Volume.format(device, name="v", now=EPOCH, **options)
    volume = Volume.mount(device)
    a, b = volume.create_lun("a", 4 * MIB), volume.create_lun("b", 4 * MIB)
    a.write(0, pattern(1, MIB))
    b.share(0, a, 0, MIB)
    volume.request_snapshot("s")
    checkpoint(volume)
    b.write(0, pattern(2, 5 * BLOCK_BYTES))
    b.share(2 * MIB, a, 8 * BLOCK_BYTES, 9 * BLOCK_BYTES)
    return device, volume

"""The device that stands for a power cut in the tests with real hosts: what it promises, and what it takes away."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.volatile_device import SECTOR, VolatileDevice
from tests.support.volumes import MIB

SIZE = MIB // 4
ROOT = Path(__file__).resolve().parents[2]


def opened(path: Path, monkeypatch: pytest.MonkeyPatch, early: float, seed: int = 1) -> VolatileDevice:
    monkeypatch.setenv("LAZYLUN_EARLY", str(early))
    monkeypatch.setenv("LAZYLUN_VOLATILE_SEED", str(seed))
    return VolatileDevice.open(path, create_bytes=SIZE)  # type: ignore[return-value]


def sectors(image: bytes) -> list[bytes]:
    return [bytes(image[at : at + SECTOR]) for at in range(0, SIZE, SECTOR)]


@pytest.mark.parametrize("early", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_file_has_what_was_synced_and_perhaps_what_came_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: float, seed: int
) -> None:
    path = tmp_path / "volume"
    device = opened(path, monkeypatch, early, seed)
    rng = random.Random(seed)
    latest = bytearray(SIZE)
    synced = sectors(latest)
    allowed = [{sector} for sector in synced]
    for _ in range(100):
        at = rng.randrange(SIZE)
        data = rng.randbytes(min(rng.choice([1, 40, SECTOR, 4096, 40000]), SIZE - at))
        device.pwrite(at, [data[: len(data) // 2], data[len(data) // 2 :]])
        latest[at : at + len(data)] = data
        for may, sector in zip(allowed, sectors(latest), strict=True):
            may.add(sector)
        if rng.random() < 0.1:
            device.sync()
            synced = sectors(latest)
            allowed = [{sector} for sector in synced]
        start = rng.randrange(SIZE)
        read = bytearray(min(rng.randrange(1, 30000), SIZE - start))
        device.pread(start, read)
        assert read == latest[start : start + len(read)]
        found = sectors(path.read_bytes())
        assert all(sector in may for sector, may in zip(found, allowed, strict=True))
        if not early:
            assert found == synced
    device.close()
    assert path.read_bytes() == latest


def test_a_killed_process_leaves_only_what_it_synced(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    program = (
        "import os, signal\n"
        "from tests.support.volatile_device import install\n"
        "from wafl import FileDevice\n"
        "install()\n"
        f"device = FileDevice.open({str(path)!r}, create_bytes={SIZE})\n"
        "device.pwrite(0, [b'flushed'])\n"
        "device.sync()\n"
        "device.pwrite(4096, [b'lost'])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LAZYLUN_EARLY": "0"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    image = path.read_bytes()
    assert image[:7] == b"flushed"
    assert not any(image[4096:])

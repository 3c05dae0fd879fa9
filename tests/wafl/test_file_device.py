"""What a device in a file knows of the disk under it."""

from __future__ import annotations

import os
from pathlib import Path

from wafl import FileDevice
from wafl.device import kernel_reads_ahead


def test_how_far_the_kernel_reads_ahead_is_what_the_disk_says(tmp_path: Path) -> None:
    told = {}
    for disk in Path("/sys/class/block").iterdir():
        file = disk / "queue" / "read_ahead_kb"
        if file.exists():
            major, minor = map(int, (disk / "dev").read_text().split(":"))
            told[os.makedev(major, minor)] = int(file.read_text()) * 1024
    assert {number: kernel_reads_ahead(number) for number in told} == told
    device = FileDevice.open(tmp_path / "volume", create_bytes=1 << 20)
    assert device.read_ahead_bytes == kernel_reads_ahead(tmp_path.stat().st_dev)
    device.close()


def test_where_there_is_no_disk_nothing_is_known() -> None:
    assert kernel_reads_ahead(0) == 0

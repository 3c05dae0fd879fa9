"""The latency of a Linux host's reads while a LUN is cloned: fio in User-Mode Linux, the kernel's own initiator.

Such a host is slow by itself, so only the ratios count.  What fio reads is in the machine's page cache.
"""

from __future__ import annotations

import json

from rich.console import Console

from scripts.bench.clone_latency import compare
from scripts.bench.clone_site import (
    IDLE,
    LUNS,
    POLITE,
    SPAN_MIB,
    Round,
    Site,
)
from scripts.bench.rivals import settle
from tests.support.lund import wait_until
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import UmlHost, missing_parts

RAMP_S = 2
"""The clone begins in it."""
LIMIT_S = 120.0


class HostBench:
    def __init__(self, site: Site, host: UmlHost) -> None:
        self.site, self.host = site, host
        self.iscsi = OpenIscsi(host)
        self.target = site.lund.target()
        self.span_mib = min(SPAN_MIB, site.options.size)

    def latency(self, lun: int, depth: int, speed: str) -> Round:
        site = self.site
        site.make_clone()
        self.iscsi.rescan()
        clone = self.iscsi.disk(self.target, LUNS["the cloned LUN"])
        disk = self.iscsi.disk(self.target, lun)
        self.host.sh(f"dd if={disk} of=/dev/null bs=1M count={self.span_mib} iflag=direct 2>/dev/null", limit_s=LIMIT_S)
        settle(site.volume)
        before = self.reads(disk)
        fio = self.host.spawn(*self.fio(disk, depth), limit_s=self.seconds + LIMIT_S)
        wait_until(lambda: self.reads(disk) > before, LIMIT_S, "fio reads")
        found = site.beside_clone(speed, lambda: figures(fio.wait().out))
        self.host.sh(f"echo 1 >/sys/block/{clone.rpartition('/')[2]}/device/delete")
        site.remove_clone()
        return found

    def reads(self, disk: str) -> int:
        """Documentation/block/stat: the first field."""
        return int(self.host.run("cat", f"/sys/block/{disk.rpartition('/')[2]}/stat").out.split()[0])

    @property
    def seconds(self) -> int:
        return max(1, round(self.site.options.seconds))

    def fio(self, disk: str, depth: int) -> list[str]:
        return [
            "fio", "--name=reads", f"--filename={disk}", "--rw=randread", "--bs=4k", "--direct=1", "--ioengine=libaio",
            f"--iodepth={depth}", f"--size={self.span_mib}M", "--randrepeat=0", "--norandommap", "--time_based",
            f"--ramp_time={RAMP_S}", f"--runtime={self.seconds}", "--output-format=json",
        ]  # fmt: skip


def figures(output: str) -> Round:
    reads = json.loads(output[output.index("{") :])["jobs"][0]["read"]
    percentiles = {name: ns / 1000 for name, ns in reads["clat_ns"]["percentile"].items()}
    return {
        "rate": reads["iops"], "p50_us": percentiles["50.000000"], "p99_us": percentiles["99.000000"],
        "clat_us": percentiles,
    }  # fmt: skip


def measure_host(site: Site, console: Console) -> list[Round]:
    if reasons := missing_parts():
        console.print("without a Linux host: " + "; ".join(reasons))
        return []
    with UmlHost(site.namespace, site.directory) as host:
        bench = HostBench(site, host)
        bench.iscsi.login(bench.target)
        title = "4 KiB random reads by a Linux host (fio in User-Mode Linux): p99 against no clone"
        return compare(site, bench.latency, (IDLE, POLITE), title, console)

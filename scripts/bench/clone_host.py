"""The latency of a Linux host's reads while a LUN is cloned: fio in User-Mode Linux, the kernel's own initiator.

Such a host is slow by itself, so only the ratios count.  What fio reads is in the machine's page cache.
"""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from scripts.bench.clone_site import (
    IDLE,
    LUNS,
    POLITE,
    SPAN_MIB,
    Round,
    Site,
    median,
    ratios,
    spread,
    turns,
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
        return _measure(bench, console)


def _measure(bench: HostBench, console: Console) -> list[Round]:
    table = Table(title="4 KiB random reads by a Linux host (fio in User-Mode Linux): p99 against no clone")
    for column in ("reads from", "depth", "clone", "reads/s", "p50 µs", "p99 µs", "p99 / no clone", "copied MiB/s"):
        table.add_column(column, justify="left" if column in ("reads from", "clone") else "right")
    results = []
    for where, lun in LUNS.items():
        for depth in bench.site.options.depth:
            found = turns(
                {
                    speed: lambda lun=lun, depth=depth, speed=speed: bench.latency(lun, depth, speed)
                    for speed in (IDLE, POLITE)
                },
                bench.site.options.rounds,
                lambda speed, figures: console.print(f"  {speed}: p99 {figures['p99_us']:,.0f} µs"),
            )
            result: Round = {"reads_from": where, "depth": depth, "rounds": found, "p99_ratio": {}}
            for speed, rounds in found.items():
                ratio = result["p99_ratio"][speed] = ratios(rounds, found[IDLE], "p99_us")
                table.add_row(
                    where, str(depth), speed, f"{median(rounds, 'rate'):,.0f}", f"{median(rounds, 'p50_us'):,.0f}",
                    f"{median(rounds, 'p99_us'):,.0f}", spread(ratio), f"{median(rounds, 'copied_mib_s'):,.1f}",
                )  # fmt: skip
            results.append(result)
    console.print(table)
    return results

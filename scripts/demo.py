#!/usr/bin/env python3
"""`make demo`: the whole story, with a real Linux host, in under three minutes.

A golden LUN is filled by a host; clones are made of it in an instant; the host works on one while it is separated
from its snapshot underneath; the snapshot goes, and the space with it.  Everything runs in a network namespace and a
temporary directory and is gone afterwards.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import click  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from target.cli import main as lun  # noqa: E402
from tests.support.lund import MIB, Lund  # noqa: E402
from tests.support.netns import Namespace  # noqa: E402
from tests.support.openiscsi import OpenIscsi  # noqa: E402
from tests.support.uml import Job, UmlHost, missing_parts  # noqa: E402

VOLUME, GOLDEN, SNAPSHOT = "vol0", "/vol/vol0/golden", "monday"
CLONES = [f"/vol/vol0/vm{number}" for number in range(1, 6)]
FILES, FILE_MIB = 12, 16
CLONE_RATE = "12m"
WORK_SECONDS = 20
RECLAIM_LIMIT_S = 20


class Story:
    """The steps; each prints what is typed and what came of it."""

    def __init__(self, console: Console, lund: Lund, host: UmlHost) -> None:
        self.console, self.lund, self.host = console, lund, host
        self.iscsi = OpenIscsi(host)
        self.verdicts: list[tuple[str, bool]] = []

    def title(self, text: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{text}", align="left")

    def lun(self, *argv: str) -> None:
        """The real command, in this process, so that the time shown is not Python's start."""
        self.console.print(f"[cyan]lund #[/] lun {' '.join(argv)}")
        began = time.monotonic()
        lun.main(["--socket", str(self.lund.socket), *argv], standalone_mode=False)
        self.console.print(f"[dim]      {(time.monotonic() - began) * 1000:.0f} ms[/]")

    def guest(self, script: str, show: bool = True, limit_s: float = 120) -> str:
        self.console.print(f"[green]host #[/] {script}")
        out = self.host.sh(script, limit_s=limit_s).out
        if show and out.strip():
            self.console.print(out.rstrip(), style="dim")
        return out

    def verdict(self, what: str, holds: bool) -> None:
        self.verdicts.append((what, holds))
        self.console.print(("[bold green]  yes [/]" if holds else "[bold red]  NO  [/]") + what)

    def used_bytes(self) -> int:
        return int(self.lund.get(f"volumes/{VOLUME}")["used_bytes"])

    # the steps

    def golden(self) -> str:
        self.title("1  A Linux host fills a golden LUN")
        self.lun("vol", "create", VOLUME, "-s", "4g")
        self.lun("create", "-s", "512m", "-o", "noreserve", GOLDEN)
        self.lun("igroup", "create", "hosts", self.host.initiator)
        self.lun("map", GOLDEN, "hosts", "0")
        target = self.lund.target()
        self.console.print(f"[green]host #[/] iscsiadm -m discovery -t sendtargets -p {self.host.portal}")
        self.console.print("\n".join(self.iscsi.discover()), style="dim")
        self.console.print(f"[green]host #[/] iscsiadm -m node -T {target} --login")
        self.iscsi.login(target)
        disk = self.iscsi.disk(target)
        self.guest(f"mkfs.ext4 -q -L golden {disk} && mkdir -p /mnt/golden /mnt/vm1 && mount {disk} /mnt/golden")
        self.guest(
            f"cd /mnt/golden; for i in $(seq {FILES}); do head -c {FILE_MIB}M /dev/urandom > file$i; done; sync; df ."
        )
        sums = self.guest("cd /mnt/golden; sha256sum file*", show=False)
        self.console.print(f"{FILES} files of {FILE_MIB} MiB; their checksums are kept for later", style="dim")
        self.guest("umount /mnt/golden")
        self.lun("df")
        return sums

    def clones(self) -> None:
        self.title(f"2  A snapshot, and {len(CLONES)} clones in an instant")
        self.lun("snap", "create", VOLUME, SNAPSHOT)
        self.lun("clone", "create", "--count", str(len(CLONES)), f"/vol/{VOLUME}/vm%d", "-b", GOLDEN, SNAPSHOT)
        self.lun("map", CLONES[0], "hosts", "1")
        self.lun("df")

    def work(self) -> tuple[str, Job]:
        self.title("3  The host mounts a clone and goes to work on it")
        self.iscsi.rescan()
        disk = self.iscsi.disk(self.lund.target(), 1)
        self.guest(f"mount {disk} /mnt/vm1; ls /mnt/vm1 | head -3")
        argv = (
            "fio", "--name=work", "--directory=/mnt/vm1", "--size=24M", "--rw=randwrite", "--bs=4k", "--direct=1",
            "--ioengine=libaio", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--time_based",
            f"--runtime={WORK_SECONDS}",
        )  # fmt: skip
        self.console.print(f"[green]host #[/] {' '.join(argv)} &")
        return disk, self.host.spawn(*argv, limit_s=150)

    def separate(self) -> None:
        self.title("4  Underneath, the clone is separated from its snapshot")
        self.lun("clone", "tree", VOLUME)
        self.lun("show", "--map", CLONES[0])
        self.lun("clone", "estimate", CLONES[0])
        self.lun("clone", "start", "--limit", CLONE_RATE, CLONES[0])
        refusal = ""
        try:
            self.lun("snap", "delete", VOLUME, SNAPSHOT)
        except click.ClickException as error:
            refusal = error.format_message()
            self.console.print(f"[yellow]{refusal}[/]")
        self.verdict("the snapshot refuses to be deleted, and says who needs it", CLONES[0] in refusal)
        self.lun("clone", "status", "-f", CLONES[0])
        self.verdict(f"{CLONES[0]} is complete", self.lund.clone_status(CLONES[0])["state"] == "completed")

    def check(self, disk: str, work: Job, sums: str) -> None:
        self.title("5  Is every byte right?")
        result = work.wait(check=False)
        self.verdict("fio read back every block it wrote during the clone (crc32c)", result.code == 0)
        self.guest("sync; echo 3 > /proc/sys/vm/drop_caches")
        found = self.guest("cd /mnt/vm1; sha256sum file*", show=False)
        self.verdict(f"the {FILES} files of the golden LUN are unchanged in the clone", found == sums)
        self.guest("umount /mnt/vm1")
        code = self.host.run("e2fsck", "-f", "-n", disk, check=False).code
        self.verdict("e2fsck finds nothing", code == 0)

    def delete(self) -> None:
        self.title("6  The other clones go, the snapshot goes, the space comes back")
        for path in CLONES[1:]:
            self.lun("destroy", "-f", path)
        disk = self.iscsi.disk(self.lund.target(), 0)
        # ext4 frees the blocks of a deleted file with its next journal commit: hence the sync before the trim.
        self.guest(f"mount {disk} /mnt/golden; rm /mnt/golden/file*; sync; fstrim -v /mnt/golden; umount /mnt/golden")
        self.lun("df")
        before = self.used_bytes()
        self.lun("snap", "delete", VOLUME, SNAPSHOT)
        deadline = time.monotonic() + RECLAIM_LIMIT_S
        while before - self.used_bytes() < FILES * FILE_MIB * MIB and time.monotonic() < deadline:
            time.sleep(0.1)
        self.lun("df")
        back = before - self.used_bytes()
        self.verdict(f"{back / MIB:.0f} MiB were given back", back >= FILES * FILE_MIB * MIB)

    def summary(self, seconds: float) -> bool:
        table = Table(title=f"In {seconds:.0f} s", show_header=False)
        for what, holds in self.verdicts:
            table.add_row("[green]yes[/]" if holds else "[red]NO[/]", what)
        self.console.print()
        self.console.print(table)
        return all(holds for _, holds in self.verdicts)


def main() -> int:
    console = Console(highlight=False)
    lacking = missing_parts()
    if lacking:
        console.print(f"The demo boots a Linux host of its own, and this machine cannot: {'; '.join(lacking)}.")
        console.print("`make run` shows the target without one.")
        return 1
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lazylun-demo-") as name, Namespace() as namespace:
        directory = Path(name)
        with Lund(namespace, directory / "state") as lund:
            console.print("lund runs; a Linux host boots (User-Mode Linux with open-iscsi) …")
            with UmlHost(namespace, directory, name="demo") as host:
                story = Story(console, lund, host)
                sums = story.golden()
                story.clones()
                disk, work = story.work()
                story.separate()
                story.check(disk, work, sums)
                story.delete()
                story.iscsi.logout(lund.target())
    return 0 if story.summary(time.monotonic() - began) else 1


if __name__ == "__main__":
    sys.exit(main())

"""A Linux host as the client, and LIO, Linux's own target, on another: both in User-Mode Linux.

What it knows: how to serve a RAM disk with LIO (configfs, nothing but the kernel), and how to bring disks of several
targets up on one host.

A kernel in User-Mode Linux pays dearly for each system call and each packet.  As the client it is the same for all
targets, so the ratios are smaller than they are elsewhere.  LIO pays it a second time, for it runs inside; its disk, a
RAM disk, costs it nothing.  Figures of LIO say what a target in the kernel of a virtual machine of this kind does, and
nothing about LIO on a real machine.
"""

from __future__ import annotations

from pathlib import Path

from scripts.bench import fio
from scripts.bench.works import LIO, Work
from tests.support.lund import MIB
from tests.support.netns import Namespace
from tests.support.openiscsi import OpenIscsi
from tests.support.uml import UmlHost

LIO_IQN, LIO_LUN = "iqn.2026-01.test.lio:disk", 0
SPARE_MIB = 256
"""Of memory, beside the RAM disk."""
NETWORK = "10.77.0.0/16"
PAGE = 4096
# drivers/target: a backstore, a target that lets everybody in and write, and a portal.
SERVE = """
for module in target_core_mod iscsi_target_mod; do modprobe -d /run/modules $module; done
mount -t configfs configfs /sys/kernel/config
core=/sys/kernel/config/target/core/rd_mcp_0/disk
mkdir -p $core
echo rd_pages={pages} >$core/control
echo 1 >$core/enable
group=/sys/kernel/config/target/iscsi/{iqn}/tpgt_1
mkdir -p $group/lun/lun_{lun} $group/np/0.0.0.0:3260
ln -s $core $group/lun/lun_{lun}/disk
echo 0 >$group/attrib/authentication
echo 1 >$group/attrib/generate_node_acls
echo 0 >$group/attrib/demo_mode_write_protect
echo 1 >$group/enable
"""


class LinuxHosts:
    """`with LinuxHosts(...) as hosts`: one is the client, the other has LIO."""

    def __init__(self, namespace: Namespace, directory: Path, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._client = UmlHost(namespace, directory, name="client")
        self._server = UmlHost(namespace, directory, name="server", memory=f"{size_bytes // MIB + SPARE_MIB}M")
        self._namespace = namespace
        self._disks: dict[str, str] = {}

    def __enter__(self) -> LinuxHosts:
        self._namespace.run(["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], check=True)
        self._client.start()
        try:
            self._server.start()
        except BaseException:
            self._client.close()
            raise
        for host in (self._client, self._server):
            host.run("ip", "route", "add", NETWORK, "via", host.portal)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._server.close()

    def start_lio(self) -> None:
        self._server.sh(SERVE.format(pages=self.size_bytes // PAGE, iqn=LIO_IQN, lun=LIO_LUN))
        self._log_in(LIO, self._server.address, LIO_IQN, LIO_LUN)
        # A RAM disk has no pages before they are written.
        self._client.run("dd", "if=/dev/zero", f"of={self._disks[LIO]}", "bs=1M", f"count={self.size_bytes // MIB}",
                         "oflag=direct", limit_s=600)  # fmt: skip

    def log_in(self, name: str, port: int, target: str, lun: int) -> None:
        """To a target on the machine itself."""
        self._log_in(name, f"{self._client.portal}:{port}", target, lun)

    def _log_in(self, name: str, portal: str, target: str, lun: int) -> None:
        iscsi = OpenIscsi(self._client, portal)
        iscsi.login(target)
        self._disks[name] = iscsi.disk(target, lun)

    def measure(self, work: Work, name: str, seed: int, seconds: float) -> fio.Figures:
        words = fio.words(work, seed, self.size_bytes, 0, seconds)
        more = [f"--filename={self._disks[name]}", "--ioengine=libaio", "--direct=1"]
        return fio.figures(work, self._client.run(*words, *more, limit_s=seconds + 120).out)

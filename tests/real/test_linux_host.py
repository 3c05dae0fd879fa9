"""A Linux host with open-iscsi on a plain LUN: discovery, login in every way, a file system, integrity."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from tests.support.lund import MIB, Lund, wait_until
from tests.support.openiscsi import DIGESTS, Chap, OpenIscsi
from tests.support.uml import Job, UmlHost

LUN = "/vol/vol0/disk"
CHAP = Chap("alice", "wonderland-secret", algorithms="MD5")
MUTUAL = dataclasses.replace(CHAP, target_user="lund", target_secret="looking-glass-secret")
# open-iscsi's words for a login response of class 2 (RFC 7143 11.13.5) are its exit codes 24 and 19.
AUTHORIZATION_FAILED = (19, 24)


def fio_verify(directory: str, size: str = "24M", seconds: int = 0) -> list[str]:
    """fio's command line: random writes, each read back and compared by its crc32c."""
    more = ["--time_based", f"--runtime={seconds}"] if seconds else []
    return [
        "fio", "--name=verify", f"--directory={directory}", f"--size={size}", "--rw=randwrite", "--bs=4k",
        "--ioengine=libaio", "--iodepth=16", "--direct=1", "--verify=crc32c", "--verify_fatal=1", "--end_fsync=1",
        "--output-format=terse", *more,
    ]  # fmt: skip


def keep_verifying(host: UmlHost, directory: str) -> Job:
    """Writes and reads back, again and again, until `end_verifying`; at a pace that leaves the machine to others."""
    fio = shlex.join([*fio_verify(directory, "2M"), "--rate_iops=2000,400"])
    again = f"rm -f /tmp/stop; until [ -e /tmp/stop ]; do {fio} >/dev/null; done"
    return host.spawn("/bin/sh", "-ec", again, limit_s=300)


def end_verifying(host: UmlHost, work: Job) -> None:
    """Nothing had ended it before: no error, no wrong byte."""
    assert work.running, work.wait(check=False)
    host.run("touch", "/tmp/stop")
    work.wait()


def use_as_disk(host: UmlHost, disk: str) -> None:
    host.run("mkfs.ext4", "-q", "-F", disk)
    host.sh(f"mkdir -p /mnt/disk; mount {disk} /mnt/disk")
    host.run(*fio_verify("/mnt/disk"), limit_s=120)
    host.run("umount", "/mnt/disk")
    host.run("e2fsck", "-f", "-n", disk)


@pytest.fixture
def plain(lund: Lund) -> Lund:
    lund.add_lun(LUN)
    return lund


def test_discovery_names_the_volume_s_target(plain: Lund, iscsi: OpenIscsi) -> None:
    assert iscsi.discover() == [plain.target()]


def test_discovery_shows_nothing_to_a_host_without_a_lun(lund: Lund, iscsi: OpenIscsi) -> None:
    lund.lun("create", "-s", "64m", LUN)
    lund.lun("igroup", "create", "others", "iqn.2026-01.test:somebody-else")
    lund.lun("map", LUN, "others", "0")
    listing = iscsi.host.run("iscsiadm", "-m", "discovery", "-t", "sendtargets", "-p", iscsi.portal, check=False)
    assert lund.target() not in listing.text


def test_file_system_on_a_plain_lun(plain: Lund, host: UmlHost, iscsi: OpenIscsi) -> None:
    iscsi.login(plain.target())
    use_as_disk(host, iscsi.disk(plain.target()))
    iscsi.logout(plain.target())


def test_file_system_with_header_and_data_digests(plain: Lund, host: UmlHost, iscsi: OpenIscsi) -> None:
    iscsi.login(plain.target(), settings=DIGESTS)
    negotiated = iscsi.negotiated(plain.target())
    assert "HeaderDigest: CRC32C" in negotiated
    assert "DataDigest: CRC32C" in negotiated
    use_as_disk(host, iscsi.disk(plain.target()))


@pytest.mark.parametrize("algorithm", ["MD5", "SHA1", "SHA256", "SHA3-256"])
def test_login_with_one_way_chap(plain: Lund, iscsi: OpenIscsi, algorithm: str) -> None:
    require_chap(plain, iscsi.host, CHAP)
    iscsi.login(plain.target(), dataclasses.replace(CHAP, algorithms=algorithm))
    assert iscsi.session_state(plain.target()) == "LOGGED_IN"


def test_login_with_mutual_chap(plain: Lund, iscsi: OpenIscsi) -> None:
    require_chap(plain, iscsi.host, MUTUAL)
    iscsi.login(plain.target(), MUTUAL)
    assert iscsi.session_state(plain.target()) == "LOGGED_IN"


def test_a_target_that_does_not_know_the_mutual_secret_is_left(plain: Lund, iscsi: OpenIscsi) -> None:
    require_chap(plain, iscsi.host, MUTUAL)
    result = iscsi.try_login(plain.target(), dataclasses.replace(MUTUAL, target_secret="another-secret-altogether"))
    assert result.code != 0


def test_a_wrong_secret_is_refused_and_logged_without_it(plain: Lund, iscsi: OpenIscsi) -> None:
    require_chap(plain, iscsi.host, CHAP)
    wrong = dataclasses.replace(CHAP, secret="not-the-right-secret")
    result = iscsi.try_login(plain.target(), wrong)
    assert result.code in AUTHORIZATION_FAILED, result
    # the answer leaves before the line is written
    wait_until(lambda: iscsi.host.initiator in plain.log(), 10, "the refusal is in the log")
    assert CHAP.secret not in plain.log()
    assert wrong.secret not in plain.log()


def test_login_without_chap_is_refused_where_chap_is_asked_for(plain: Lund, iscsi: OpenIscsi) -> None:
    require_chap(plain, iscsi.host, CHAP)
    result = iscsi.try_login(plain.target())
    assert result.code in AUTHORIZATION_FAILED, result


def test_a_host_sees_a_lun_that_is_mapped_while_it_is_logged_in(plain: Lund, host: UmlHost, iscsi: OpenIscsi) -> None:
    iscsi.login(plain.target())
    iscsi.disk(plain.target(), 0)
    plain.add_lun("/vol/vol0/second", 64 * MIB, lun_id=1)
    iscsi.rescan()
    size = host.run("blockdev", "--getsize64", iscsi.disk(plain.target(), 1)).out
    assert int(size) == 64 << 20


def require_chap(lund: Lund, host: UmlHost, chap: Chap) -> None:
    """An account for this one initiator, so that it is refused without."""
    account = {"method": "chap", "user": chap.user, "secret": chap.secret}
    if chap.target_user:
        account |= {"out_user": chap.target_user, "out_secret": chap.target_secret}
    answer = lund.api.put(f"/v1/iscsi/security/{host.initiator}", json=account)
    answer.raise_for_status()

"""The shapes of names."""

from __future__ import annotations

import pytest

from target.management.names import LunPath, PortalAddress, check_initiator, check_nodename, check_volume_name
from target.management.refusal import Refused


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/vol/vol0/lun0", LunPath("vol0", "lun0")),
        ("/vol/vol0/a/b", LunPath("vol0", "a/b")),
        ("/vol/vol0/.snapshot/monday/lun0", LunPath("vol0", "lun0", "monday")),
    ],
)
def test_a_lun_path_is_read_and_written_alike(text: str, path: LunPath) -> None:
    assert LunPath.parse(text) == path
    assert str(path) == text


@pytest.mark.parametrize(
    "text", ["", "/", "lun0", "/vol/vol0", "/vol/vol0/", "/vol//lun0", "/vil/v/l", "/vol/v/.snapshot/s"]
)
def test_what_is_not_a_lun_path_is_refused(text: str) -> None:
    with pytest.raises(Refused) as caught:
        LunPath.parse(text)
    assert caught.value.name == "invalid-path"


def test_a_path_inside_a_snapshot_cannot_be_changed() -> None:
    with pytest.raises(Refused, match="inside a snapshot"):
        LunPath.parse_active("/vol/v/.snapshot/s/l")


@pytest.mark.parametrize("name", ["Vol0", "a_b", "", "-a", "a.", "a" * 65, "a/b", "ä"])
def test_a_volume_name_that_cannot_be_part_of_an_iscsi_name_is_refused(name: str) -> None:
    with pytest.raises(Refused):
        check_volume_name(name)


@pytest.mark.parametrize("name", ["vol0", "a", "db-1.fast", "a" * 64])
def test_a_volume_name_of_letters_digits_and_marks_is_taken(name: str) -> None:
    assert check_volume_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "iqn.1993-08.org.debian:01:abcdef",
        "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-ls",
        "iqn.2008-11.org.linux-kvm",
        "eui.0123456789abcdef",
        "naa.0123456789abcdef0123456789abcdef",
    ],
)
def test_names_that_hosts_use_are_taken(name: str) -> None:
    assert check_initiator(name) == name


def test_initiator_names_are_compared_without_case() -> None:
    assert check_initiator("IQN.1991-05.com.Microsoft:HOST1") == "iqn.1991-05.com.microsoft:host1"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "host1",
        "iqn.x",
        "iqn.2000-13.com.a",
        "eui.12",
        "*",
        "iqn.2000-01.com.a:b c",
        "iqn.2000-01.com.a:" + "x" * 230,
    ],
)
def test_what_is_not_an_iscsi_name_is_refused(name: str) -> None:
    with pytest.raises(Refused):
        check_initiator(name)


def test_everybody_is_a_member_only_where_that_is_allowed() -> None:
    assert check_initiator("*", any_allowed=True) == "*"


def test_a_node_name_leaves_room_for_the_volume() -> None:
    with pytest.raises(Refused):
        check_nodename("iqn.2000-01.com.example:" + "x" * 160)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("127.0.0.1", "127.0.0.1:3260"),
        ("127.0.0.1:860", "127.0.0.1:860"),
        ("[::1]:3261", "[::1]:3261"),
        ("::1", "[::1]:3260"),
        ("[2001:DB8:0::1]", "[2001:db8::1]:3260"),
        ("*:3260", "0.0.0.0:3260"),
    ],
)
def test_a_portal_is_read_in_every_usual_form(text: str, shown: str) -> None:
    assert str(PortalAddress.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "host:3260", "1.2.3.4:x", "1.2.3.4:70000", "1.2.3", "[::1"])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        PortalAddress.parse(text)

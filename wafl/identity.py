"""Who a LUN is: UUID, serial number and NAA designator, its own for life (invariant L4)."""

from __future__ import annotations

import base64
import hashlib
import uuid as uuids
from collections.abc import Iterable

from wafl.errors import NameTaken
from wafl.lun import Lun


def identities(luns: Iterable[Lun]) -> set[str | bytes]:
    """What none of another LUN may be."""
    return {value for lun in luns for value in (lun.uuid, lun.serial, lun.naa)}


def new_identity(taken: set[str | bytes], uuid: uuids.UUID | None) -> tuple[uuids.UUID, str, bytes]:
    """UUID (the given one, or a new one), serial number and NAA designator, none of them `taken`; they are then.
    Raises NameTaken."""
    while True:
        chosen = uuid or uuids.uuid4()
        serial, naa = serial_of(chosen), naa_of(chosen)
        if taken.isdisjoint((str(chosen), serial, naa)):
            taken.update((str(chosen), serial, naa))
            return chosen, serial, naa
        if uuid is not None:
            raise NameTaken(f"a LUN with the UUID {uuid} exists")


def serial_of(uuid: uuids.UUID) -> str:
    """12 characters drawn from the UUID."""
    return base64.b32encode(hashlib.blake2b(uuid.bytes, digest_size=8).digest()).decode()[:12]


def naa_of(uuid: uuids.UUID) -> bytes:
    """SPC-4 7.8.6.6.4: NAA 3h, locally assigned, 60 bits drawn from the UUID (docs/decisions/0004)."""
    bits = int.from_bytes(hashlib.blake2b(uuid.bytes, digest_size=8, person=b"naa").digest()) & (1 << 60) - 1
    return (3 << 60 | bits).to_bytes(8)

"""An initiator that costs little, for measuring targets: one connection, 4 KiB writes, flushes, times of each.

iscsi-perf cannot flush; this can, and speaks to every target alike.  `python -m tests.support.lean_initiator --help`.
Each of `depth` lanes has one thing under way: a write, or a write and then a SYNCHRONIZE CACHE.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BLOCK = 4096
SECTOR = 512
BHS = 48
NAME = "iqn.2026-01.test.host:lean"
KEYS = {
    "SessionType": "Normal",
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": "262144",
    "MaxBurstLength": "262144",
    "FirstBurstLength": "262144",
    "MaxOutstandingR2T": "1",
    "MaxConnections": "1",
    "ErrorRecoveryLevel": "0",
}
# RFC 7143 11: opcodes as they come on the wire
LOGIN, COMMAND, NOP_OUT = 0x43, 0x01, 0x40
NOP_IN, RESPONSE, LOGIN_RESPONSE, DATA_IN, ASYNC = 0x20, 0x21, 0x23, 0x25, 0x32
NO_TAG = 0xFFFFFFFF
TEST_UNIT_READY, WRITE_10, SYNCHRONIZE_CACHE_10, REPORT_LUNS = 0x00, 0x2A, 0x35, 0xA0
REPORT_LUNS_BYTES = 0x40000
"""Of 32,767 LUNs; its low byte is 0, so that the length of a WRITE stands where it belongs."""
_COMMAND = struct.Struct(">BBxxxBHxBxxxxxxIIIIBBIxHx6x")
"""opcode, flags, DataSegmentLength (1 + 2 bytes), LUN, ITT, EDTL, CmdSN, ExpStatSN; CDB: code, 0, LBA, blocks."""


class TargetError(Exception):
    """The target refused a login or a command, or went away."""


@dataclass
class Times:
    """When each thing began, and how long it took, in seconds of the monotonic clock."""

    begun: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)


class LeanInitiator:
    def __init__(self, address: tuple[str, int], target: str, lun: int, *, initiator: str = NAME) -> None:
        self._lun = lun
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()
        self._cmd_sn = self._max_cmd_sn = 1
        self._exp_stat_sn = 0
        self._log_in({"InitiatorName": initiator, "TargetName": target, **KEYS})
        self.get_ready()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> LeanInitiator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- PDUs

    def _send(self, header: bytes, data: bytes = b"") -> None:
        self._socket.sendall(header + data + bytes(-len(data) % 4))

    def _pdu(self) -> tuple[bytes, bytes]:
        """The next PDU: header, data."""
        while (size := self._size()) > len(self._received):
            data = self._socket.recv(1 << 18)
            if not data:
                raise TargetError("the target closed the connection")
            self._received += data
        pdu = bytes(self._received[:size])
        del self._received[:size]
        length = int.from_bytes(pdu[5:8], "big")
        return pdu[:BHS], pdu[BHS : BHS + length]

    def _size(self) -> int:
        if len(self._received) < BHS:
            return BHS
        length = int.from_bytes(self._received[5:8], "big")
        return BHS + 4 * self._received[4] + (length + 3) // 4 * 4

    def _log_in(self, keys: dict[str, str]) -> None:
        data = b"".join(f"{key}={value}\0".encode() for key, value in keys.items())
        while True:
            # Operational stage, on to the full feature phase
            header = struct.pack(">BBxxI6sHIHxxII16x", LOGIN, 0x87, len(data), b"\x80\0\0\0\0\7", 0, 0, 0, 1, 0)
            self._send(header, data)
            answer, text = self._pdu()
            if answer[0] != LOGIN_RESPONSE or answer[36]:
                raise TargetError(f"login refused: status {answer[36:38].hex()} {text!r}")
            self._take_numbers(answer)
            if answer[1] & 0x83 == 0x83:
                return
            data = b""

    def _take_numbers(self, header: bytes) -> None:
        stat_sn, _, self._max_cmd_sn = struct.unpack_from(">III", header, 24)
        self._exp_stat_sn = stat_sn + 1 & NO_TAG

    def _command(self, tag: int, code: int, lba: int = 0, blocks: int = 0, edtl: int = 0) -> bytes:
        flags = 0xA1 if edtl else 0x81
        header = _COMMAND.pack(
            COMMAND, flags, edtl >> 16, edtl & 0xFFFF, self._lun, tag, edtl, self._cmd_sn, self._exp_stat_sn,
            code, 0, lba, blocks,
        )  # fmt: skip
        self._cmd_sn = self._cmd_sn + 1 & NO_TAG
        return header

    def _window(self) -> int:
        """Commands that the target takes now."""
        return (self._max_cmd_sn - self._cmd_sn + 1) & NO_TAG

    def _completed(self) -> tuple[int, int, bytes]:
        """Wait for the next command to end: its tag, status, sense."""
        while True:
            header, data = self._pdu()
            self._take_numbers(header)
            if header[0] == RESPONSE:
                return int.from_bytes(header[16:20], "big"), header[3], data
            if header[0] == NOP_IN and header[20:24] != b"\xff" * 4:
                reply = struct.pack(">BBxxI8sI4sII16x", NOP_OUT, 0x80, 0, header[8:16], NO_TAG, header[20:24],
                                    self._cmd_sn, self._exp_stat_sn)  # fmt: skip
                self._send(reply)
            elif header[0] not in (NOP_IN, ASYNC):
                raise TargetError(f"an unexpected PDU: {header.hex()}")

    def get_ready(self) -> None:
        """Unit attentions are reported once each."""
        for _ in range(10):
            self._send(self._command(0, TEST_UNIT_READY))
            _, status, sense = self._completed()
            if status == 0:
                return
        raise TargetError(f"not ready: {sense.hex()}")

    def report_luns(self) -> int:
        """How many there are."""
        header = _COMMAND.pack(
            COMMAND, 0xC1, 0, 0, self._lun, 0, REPORT_LUNS_BYTES, self._cmd_sn, self._exp_stat_sn,
            REPORT_LUNS, 0, 0, REPORT_LUNS_BYTES >> 8,
        )  # fmt: skip
        self._cmd_sn = self._cmd_sn + 1 & NO_TAG
        self._send(header)
        found = b""
        while True:
            answer, data = self._pdu()
            self._take_numbers(answer)
            if answer[0] == DATA_IN:
                found += data
                if answer[1] & 1:
                    return int.from_bytes(found[:4], "big") // 8
            elif answer[0] not in (NOP_IN, ASYNC):
                raise TargetError(f"an unexpected PDU: {answer.hex()}")

    # --- measuring

    def run(self, seconds: float, depth: int, size_bytes: int, *, flush: bool) -> Times:
        """Random 4 KiB writes within the first `size_bytes`, each followed by a flush if wanted."""
        rng, times, clock = random.Random(1), Times(), time.monotonic
        noise = rng.randbytes(BLOCK + 1024)
        places = size_bytes // BLOCK
        begun = [0.0] * depth
        writing = [False] * depth
        ready, under_way = list(range(depth)), 0
        end = clock() + seconds
        while ready or under_way:
            out = bytearray()
            while ready and self._window():
                lane = ready.pop()
                under_way += 1
                if writing[lane]:
                    writing[lane] = False
                    out += self._command(lane, SYNCHRONIZE_CACHE_10)
                    continue
                begun[lane] = clock()
                writing[lane] = flush
                start = rng.randrange(1024)
                lba = rng.randrange(places) * (BLOCK // SECTOR)
                out += self._command(lane, WRITE_10, lba, BLOCK // SECTOR, BLOCK)
                out += noise[start : start + BLOCK]
            if out:
                self._socket.sendall(out)
            # Whatever has come is taken before anything is sent again.
            while True:
                lane, status, sense = self._completed()
                if status:
                    raise TargetError(f"status {status}: {sense.hex()}")
                under_way -= 1
                now = clock()
                if writing[lane]:
                    ready.append(lane)
                else:
                    times.begun.append(begun[lane])
                    times.took.append(now - begun[lane])
                    if now < end:
                        ready.append(lane)
                if self._size() > len(self._received):
                    break
        return times


def main() -> int:
    parser = argparse.ArgumentParser(description="4 KiB random writes, with or without flushes, against one LUN.")
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=3260)
    parser.add_argument("--target", required=True)
    parser.add_argument("--lun", type=int, default=0)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--size", type=int, default=64, help="MiB that are written to")
    parser.add_argument("--flush", action="store_true", help="SYNCHRONIZE CACHE after each write")
    parser.add_argument("--times", type=Path, help="a .npy for when each began and how long it took")
    options = parser.parse_args()
    initiator = LeanInitiator((options.address, options.port), options.target, options.lun)
    begun = time.monotonic()
    times = initiator.run(options.seconds, options.depth, options.size << 20, flush=options.flush)
    spent = time.monotonic() - begun
    initiator.close()
    if options.times:
        np.save(options.times, np.array([times.begun, times.took]))
    print(json.dumps({"count": len(times.took), "seconds": spent}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

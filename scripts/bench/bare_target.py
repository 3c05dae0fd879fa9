#!/usr/bin/env python3
"""The limit for Python: the loop of bare_target.c, statement by statement, with the calls that Python has for it.

    bare_target.py PORT FILE

One `recv_into`; for each command a `preadv` straight into the output behind its header, or a `pwrite` out of the input;
one `send`.  No checks, no checksums, no map of blocks, no digests: the rest is what lund does for its money.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys

BHS, SEGMENT, SECTOR = 48, 256 * 1024, 512
RECEIVE, OUTPUT, WINDOW, NO_TAG = 2 << 20, 4 << 20, 128, 0xFFFFFFFF
LONGEST_ANSWER = (1 << 20) + 8 * BHS
NOP_OUT, COMMAND, LOGIN, DATA_OUT, LOGOUT = 0x00, 0x01, 0x03, 0x05, 0x06
READS, WRITES, SYNCHRONIZE_CACHE_10 = frozenset((0x28, 0x88)), frozenset((0x2A, 0x8A)), 0x35

# RFC 7143 11.3: opcode, flags, lengths, LUN, ITT, EDTL, CmdSN, ExpStatSN, operation code, LBA of a 10-byte CDB
unpack = struct.Struct(">BBxxIQIIIIBxI10x").unpack_from
unpack_lba_16 = struct.Struct(">Q").unpack_from
# opcode, flags, lengths, ITT, TTT, StatSN, ExpCmdSN, MaxCmdSN, DataSN, offset, length
pack = struct.Struct(">BBxxI8xIIIIIIII").pack_into

KEYS = (
    b"TargetPortalGroupTag=1\0HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0"
    b"MaxRecvDataSegmentLength=262144\0MaxBurstLength=1048576\0FirstBurstLength=262144\0MaxOutstandingR2T=1\0"
    b"MaxConnections=1\0ErrorRecoveryLevel=0\0DefaultTime2Wait=2\0DefaultTime2Retain=0\0DataPDUInOrder=Yes\0"
    b"DataSequenceInOrder=Yes\0"
)


class Bare:
    """One connection."""

    def __init__(self, connection: socket.socket, file: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        self.socket, self.file = connection, file
        self.view, self.answers = memoryview(bytearray(RECEIVE)), bytearray(OUTPUT)
        self.start = self.end = self.used = self.sent = 0
        self.stat_sn = self.exp_cmd_sn = 1
        self.gathering: dict[int, list[int]] = {}
        """By ITT: bytes to come, and where on the file the command begins."""

    def receive(self) -> bool:
        """False when the connection is over."""
        try:
            got = self.socket.recv_into(self.view[self.end :])
        except BlockingIOError:
            return True
        self.end += got
        return bool(got)

    def serve(self) -> None:
        while True:
            before = self.end - self.start
            self.run()
            self.push()
            if self.used or self.end - self.start == before:
                return

    def push(self) -> None:
        try:
            while self.sent < self.used:
                self.sent += self.socket.send(memoryview(self.answers)[self.sent : self.used])
        except BlockingIOError:
            return
        self.sent = self.used = 0

    def run(self) -> None:
        """Everything whole that has come, as far as the longest answer has room."""
        view, out, file, pos, end = self.view, memoryview(self.answers), self.file, self.start, self.end
        at, stat_sn, expected, credit = self.used, self.stat_sn, self.exp_cmd_sn, WINDOW - 1 - len(self.gathering)
        while end - pos >= BHS and OUTPUT - at > LONGEST_ANSWER:
            opcode, flags, lengths, _, itt, edtl, _, _, code, lba = unpack(view, pos)
            given = lengths & 0xFFFFFF
            size = BHS + (given + 3 & ~3)
            if end - pos < size:
                break
            if opcode == COMMAND:
                expected = expected + 1 & NO_TAG
                if code & 0x80:
                    (lba,) = unpack_lba_16(view, pos + 34)
                if code in READS:
                    done = data_sn = 0
                    while done < edtl:
                        part = min(SEGMENT, edtl - done)
                        flags = 0x81 if done + part == edtl else 0
                        pack(out, at, 0x25, flags, part, itt, NO_TAG, stat_sn, expected, expected + credit & NO_TAG,
                             data_sn, done, 0)  # fmt: skip
                        at += BHS
                        os.preadv(file, [out[at : at + part]], lba * SECTOR + done)
                        at += part
                        done += part
                        data_sn += 1
                    stat_sn = stat_sn + 1 & NO_TAG
                    pos += size
                    continue
                if code in WRITES:
                    os.pwrite(file, view[pos + BHS : pos + BHS + given], lba * SECTOR)
                    if given < edtl:
                        self.gathering[itt] = [edtl - given, lba * SECTOR]
                        credit -= 1
                        pack(out, at, 0x31, 0x80, 0, itt, itt + 1, stat_sn, expected, expected + credit & NO_TAG, 0,
                             given, edtl - given)  # fmt: skip
                        at += BHS
                        pos += size
                        continue
                elif code == SYNCHRONIZE_CACHE_10:
                    os.fdatasync(file)
            elif opcode == DATA_OUT:
                task = self.gathering[itt]
                (offset,) = struct.unpack_from(">I", view, pos + 40)
                os.pwrite(file, view[pos + BHS : pos + BHS + given], task[1] + offset)
                task[0] -= given
                if task[0]:
                    pos += size
                    continue
                del self.gathering[itt]
                credit += 1
            else:
                self.used, self.stat_sn, self.exp_cmd_sn = at, stat_sn, expected
                self.other(view[pos : pos + size], opcode & 0x3F, flags, itt)
                at, stat_sn, expected = self.used, self.stat_sn, self.exp_cmd_sn
                pos += size
                continue
            pack(out, at, 0x21, 0x80, 0, itt, 0, stat_sn, expected, expected + credit & NO_TAG, 0, 0, 0)
            at += BHS
            stat_sn = stat_sn + 1 & NO_TAG
            pos += size
        if pos == end:
            pos = end = 0
        elif end == RECEIVE or pos > RECEIVE // 2:
            view[: end - pos] = view[pos:end]
            pos, end = 0, end - pos
        self.start, self.end = pos, end
        self.used, self.stat_sn, self.exp_cmd_sn = at, stat_sn, expected

    def other(self, pdu: memoryview, opcode: int, flags: int, itt: int) -> None:
        text = b""
        if opcode == LOGIN:
            self.exp_cmd_sn = int.from_bytes(pdu[24:28], "big")
            text = KEYS if flags >> 2 & 3 == 1 else b"AuthMethod=None\0"
        elif opcode == COMMAND:  # an immediate one
            opcode, flags = COMMAND, 0x80
        elif opcode == LOGOUT:
            flags = 0x80
        elif opcode == NOP_OUT:
            if itt == NO_TAG:
                return
            flags = 0x80
        else:
            raise SystemExit(f"an unexpected PDU: opcode {opcode:02x}h")
        at = self.used
        pack(self.answers, at, opcode | 0x20, flags, len(text), itt, NO_TAG if opcode == NOP_OUT else 0, self.stat_sn,
             self.exp_cmd_sn, self.exp_cmd_sn + WINDOW - 1 & NO_TAG, 0, 0, 0)  # fmt: skip
        if opcode == LOGIN:
            self.answers[at + 8 : at + 14] = pdu[8:14]
            self.answers[at + 15] = 1
            self.answers[at + 20 : at + 24] = bytes(4)
        text += bytes(-len(text) & 3)
        self.answers[at + BHS : at + BHS + len(text)] = text
        self.used = at + BHS + len(text)
        self.stat_sn = self.stat_sn + 1 & NO_TAG


def main(port: int, path: str) -> None:
    file = os.open(path, os.O_RDWR)
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    connections: dict[int, Bare] = {}
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                connection, _ = listener.accept()
                connections[connection.fileno()] = Bare(connection, file)
                poll.register(connection, select.EPOLLIN)
                continue
            bare = connections[fd]
            pending = bare.used
            try:
                bare.push()
                alive = bool(bare.used) or bare.receive()
                if alive and not bare.used:
                    bare.serve()
            except OSError:
                alive = False
            if not alive:
                poll.unregister(fd)
                connections.pop(fd).socket.close()
            elif bool(bare.used) is not bool(pending):
                poll.modify(fd, select.EPOLLOUT if bare.used else select.EPOLLIN)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

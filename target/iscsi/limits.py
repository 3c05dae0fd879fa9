"""Everything a peer can grow, push on or delay, with its bound and the reason for it, in one place.

Negotiated values are the most we offer or accept; RFC 7143 13 has the protocol's own ranges (keys.py).
"""

from __future__ import annotations

BHS_BYTES = 48
DIGEST_BYTES = 4

# --- what we negotiate (DESIGN 6.2 rule 10: few, large PDUs)
MAX_RECV_DATA_SEGMENT_BYTES = 256 * 1024
"""Declared as our MaxRecvDataSegmentLength; a longer data segment ends the connection."""
FIRST_BURST_BYTES = 256 * 1024
MAX_BURST_BYTES = 16 * 1024 * 1024 - 1024
"""Long bursts save R2T round trips; the buffer is bounded by the command's own length anyway."""
MAX_OUTSTANDING_R2T = 8
MAX_CONNECTIONS_PER_SESSION = 4
"""Windows asks for more than one; each costs what a session's connection costs, the window is shared."""
PROTOCOL_LEVEL = 2
"""iSCSIProtocolLevel: RFC 7144."""
DEFAULT_TIME2WAIT_S = 2
DEFAULT_TIME2RETAIN_S = 0
"""Tasks are not kept for a session without connections: no host asks for it at error recovery level 0."""

# --- before login is complete
LOGIN_DATA_SEGMENT_BYTES = 8192
"""RFC 7143 13.12: the default in force during login."""
LOGIN_RECEIVE_BYTES = 16 * 1024
"""Receive buffer of a connection that has proved nothing yet."""
LOGIN_EXCHANGES = 64
"""Login PDUs a connection may send before it must have finished."""
LOGIN_TIMEOUT_S = 15.0
"""From accept to full feature phase, whatever arrives meanwhile (a peer that sends a byte a second ends here)."""

# --- text
TEXT_BYTES = 64 * 1024
"""A key=value list gathered over C-bit continuations (RFC 7143 6.2 asks for at least 8 KiB)."""
TEXT_KEYS = 256
KEY_NAME_BYTES = 63
"""RFC 7143 6.1."""
VALUE_BYTES = 8192
"""One value; the RFC asks for 255 and, for large binary values, 1024 bytes encoded."""
ISCSI_NAME_BYTES = 223
"""RFC 7143 4.2.7.1."""
CHAP_NAME_BYTES = 255
CHAP_CHALLENGE_BYTES = 1024
"""RFC 7143 12.1.3: a challenge of up to 1024 bytes must be understood."""
SENDTARGETS_BYTES = 1024 * 1024
"""An answer to SendTargets, given out piece by piece."""

# --- one connection and session in full feature phase
RECEIVE_BYTES = 4 * (MAX_RECV_DATA_SEGMENT_BYTES + BHS_BYTES + 2 * DIGEST_BYTES)
"""Receive buffer: a stream of the longest PDUs fills it without a rest that would have to be moved to its front."""
DIRECT_RECEIVE_BYTES = 32 * 1024
"""A Data-Out whose missing rest is at least this long is received straight into the command's buffer."""
GATHERING_RECEIVE_BYTES = 16 * 1024
"""Received at a time while Data-Out is awaited: what lies behind its header then goes straight to its place."""
OUTPUT_BYTES = 1024 * 1024 + 64 * 1024
"""One output buffer; the answers of a batch are collected in it and sent at once.  Four of the longest Data-In fit."""
OUTPUT_BUFFERS = 4
"""Output buffers that may be waiting for the network; then the socket is not read any more."""
OWN_PAGES_BYTES = 128 * 1024
"""Buffers from this size on are not taken from the heap."""
COMMAND_WINDOW = 128
"""MaxCmdSN - ExpCmdSN + 1 when nothing is outstanding."""
IMMEDIATE_COMMANDS = 16
"""Unfinished immediate commands of a connection; RFC 7143 4.2.2.1 lets a target refuse more (Reject reason 06h).  Also
the task management requests of a session that wait for commands sent before them."""
FENCED_FUNCTIONS = 16
"""Answers to task management that wait until the session's other connections have had everything sent before."""
COLD_TRIES = 6
"""How often a READ that waits for the disk is tried again before the loop waits with it: a LUN's pointers may be cold
at each of their levels."""
HELD_BYTES = COMMAND_WINDOW * (FIRST_BURST_BYTES + 4096)
"""Commands that arrived ahead of a gap in CmdSN and wait for it to be filled, with all the data that an initiator may
send unasked: beside others, a connection may be a whole window ahead."""
DATA_OUT_GAPS = 64
"""Gaps in one run of Data-Out that comes in any order (DataPDUInOrder=No): a peer could send every other byte."""
PLACED_BYTES = 256 * 1024
"""From this length on a write that comes in several PDUs goes to the medium as it comes."""
TASK_DATA_BYTES = 64 * 1024 * 1024
"""Data-Out of one command; the SCSI side's MAXIMUM TRANSFER LENGTH is lower."""
SESSION_DATA_BYTES = 64 * 1024 * 1024
"""Data-Out of one session, in buffers or on its way to the medium, that R2Ts may be outstanding for; further commands
wait for their first R2T with what they brought unsolicited, at most FIRST_BURST_BYTES each."""
AHS_BYTES = 255 * 4
CDB_BYTES = 260
"""SPC-4 4.2.3: variable length CDBs."""

# --- liveness
NOP_INTERVAL_S = 60.0
"""Silence after which the target asks with a NOP-In whether the initiator is still there.  Not less: initiators in user
space answer only while their program uses the disk, and one that waits a minute for a long command, as libiscsi's suite
does for SANITIZE, would be dropped and told of a power on each time.  A dead initiator holds little until then: when it
is back its session is reinstated, and a cluster ends its reservations."""
NOP_TIMEOUT_S = 30.0
"""Silence after that NOP-In that ends the connection; it also ends a peer that stopped reading."""

# --- the process
SESSIONS_PER_TARGET = 1024
CONNECTIONS = 4096
"""Accepted connections of one portal object."""
CONNECTIONS_LOGGING_IN = 256
"""Of them, those that are not yet in full feature phase.  One more drops the oldest: a flood of half-open logins must
not keep others out."""
CONNECTIONS_LOGGING_IN_PER_SOURCE = 128
"""The same for one address, whose own oldest is dropped: it must not push others out either."""

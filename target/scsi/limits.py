"""Every limit that a host could push on in the SCSI device server, with its reason.

Block limits that a host is told about (VPD page B0h) come from here too, so page and check cannot differ.
"""

from __future__ import annotations

MAX_TRANSFER_BYTES = 8 << 20
"""One READ, WRITE or VERIFY: a whole Data-Out is held in memory until it is complete, times the command window."""

OPTIMAL_TRANSFER_BYTES = 1 << 20
"""One level-1 buffer's worth; Linux takes it as io_opt and reads ahead by it."""

MAX_WRITE_SAME_BYTES = 16 << 20
"""Where blocks cannot be shared, a pattern that is not zeros is really written, on the loop that serves everybody else.
Under 65,536 blocks: beyond
that libiscsi's suite fills the range first with one WRITE of the same length."""

SHARE_BYTES = 4096
"""What stores share is whole blocks of this size."""

PATTERN_BYTES = 64 << 10
"""WRITE SAME writes this much of a pattern and shares it onto the rest: reads of the range still find it in pieces of
that size."""

MAX_UNMAP_BLOCKS = 1 << 20
"""One UNMAP command: bounds the time it holds the loop, and libiscsi's suite accepts no more (or FFFFFFFFh)."""

MAX_UNMAP_DESCRIPTORS = 64
"""Each is an operation of its own, about 40 us: all of them hold the loop for 3 ms."""

MAX_COMPARE_AND_WRITE_BLOCKS = 128
"""Under 255, so that a host can find the limit; VMware uses 1 block."""

MAX_PARAMETER_LIST_BYTES = 64 << 10
"""MODE SELECT, UNMAP, PERSISTENT RESERVE OUT: far more than any legal list."""

MAX_LBA_STATUS_DESCRIPTORS = 1024
"""GET LBA STATUS returns fewer than asked for rather than walk a fragmented LUN to its end."""

MAX_LBA_STATUS_STEPS = 512
"""Extents looked at for one GET LBA STATUS: each may cost a wait for the disk."""

MAX_UNIT_ATTENTIONS = 16
"""Pending on one I_T_L nexus; they are distinct codes, so this is never reached by the codes there are."""

MAX_REGISTRATIONS = 512
"""Persistent reservation keys on one logical unit."""

MAX_LUN_ID = 16383
"""Flat space addressing, SAM-5 4.7.7.3."""

THRESHOLD_SET_BYTES = 1 << 20
"""What the log page of thin provisioning counts in."""

UNMAP_GRANULARITY_BYTES = 4096
"""Space comes back in blocks of the volume."""

ERASE_STEP_BYTES = 512 << 10
"""One slice of SANITIZE with a pattern: a few hundred microseconds of the loop."""

UNMAP_STEP_BYTES = 1 << 30
"""One slice of SANITIZE or FORMAT UNIT by unmapping: four subtrees that are moved aside, or a millisecond where the LUN
ends within one.  16 TiB take a minute."""

ERASE_PAUSE_S = 0.004
"""Between slices, so that the other logical units have most of the loop: 128 MB/s of pattern at most."""

ERASE_RETRY_S = 1.0
"""While the volume is offline."""

MAX_ATOMIC_WRITE_BYTES = 1 << 20
"""WRITE ATOMIC: one write into the volume's log, and libiscsi's suite writes 256 blocks of 4096 bytes."""

ATOMIC_GRANULARITY_BYTES = 4096
"""Blocks of the volume: a part of one would be read, changed and written."""

COLD_TRIES = 24
"""How often a command that needs what is not in memory is put aside before the loop waits with it.  Pointers are read
level by level, those of a backing too; more tries than that mean that memory is short."""

COLD_DATA_BYTES = 16 << 20
"""Data-Out that a nexus' commands hold while they wait for the disk; one more is not put aside."""

COPY_STEP_BYTES = 1 << 20
"""One slice of EXTENDED COPY or WRITE USING TOKEN."""

COPY_WAIT_S = 0.001
"""Before a slice that had to be read ahead is tried again."""

COPY_RETRIES = 50
"""Then it is read whatever it takes: pages may be dropped as fast as they are read ahead."""

MAX_COPY_TARGETS, MAX_COPY_SEGMENTS = 16, 64
"""CSCD and segment descriptors of one EXTENDED COPY."""

MAX_DESCRIPTOR_LIST_BYTES = MAX_COPY_TARGETS * 32 + MAX_COPY_SEGMENTS * 28
"""Of the longest of them."""

MAX_COPY_SEGMENT_BYTES = 256 << 20
"""65,535 blocks of 4096 bytes fit."""

MAX_TOKENS = 1024
"""ROD tokens of one target that are valid at a time; POPULATE TOKEN is refused beyond."""

MAX_TOKEN_RANGES = 64
"""Block device range descriptors of POPULATE TOKEN or WRITE USING TOKEN."""

MAX_TOKEN_BYTES = 1 << 30
"""That one token stands for, and that one WRITE USING TOKEN writes."""

OPTIMAL_TOKEN_BYTES = 64 << 20

DEFAULT_TOKEN_S, MAX_TOKEN_S = 60, 3600
"""Seconds that a token is valid after it was last used."""

MAX_TOKEN_OUTCOMES = 256
"""Outcomes kept on one I_T_L nexus for RECEIVE ROD TOKEN INFORMATION; the oldest goes."""

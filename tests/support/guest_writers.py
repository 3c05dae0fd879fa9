"""Runs inside a test host, as `python3 -c SOURCE write|list DIRECTORY ROUND`: files of which fsync has a word to keep.

`write` never ends: one writer makes new files, another rewrites blocks of one file in place.  Each prints a line once
fsync has returned: `file NAME SHA256`, `block NUMBER COUNTER`.  `list` prints what is there now, in the same form.
"""

import hashlib
import os
import random
import sys
import threading
from itertools import count
from pathlib import Path

BLOCK = 4096
BLOCKS = 128
SIZES = (100, 5000, 40000, 150000)
TABLE = "table"
PER_ROUND = 10**9


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


def make_files(directory: Path, number: int, writer: int) -> None:
    rng = random.Random(f"{number} {writer}")
    for serial in count():
        name = f"{number}-{writer}-{serial}"
        data = rng.randbytes(rng.choice(SIZES))
        with (directory / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(directory)
        say("file", name, hashlib.sha256(data).hexdigest())


def block_of(counter: int) -> bytes:
    return (b"%015d|" % counter) * (BLOCK // 16)


def rewrite_blocks(directory: Path, number: int) -> None:
    """A later counter is a later write, in a later round too."""
    rng = random.Random(number)
    file = os.open(directory / TABLE, os.O_RDWR | os.O_CREAT)
    for counter in count(number * PER_ROUND + 1):
        block = rng.randrange(BLOCKS)
        os.pwrite(file, block_of(counter), block * BLOCK)
        os.fdatasync(file)
        say("block", block, counter)


def write(directory: Path, number: int) -> None:
    threads = [threading.Thread(target=make_files, args=(directory, number, writer)) for writer in range(2)]
    for thread in threads:
        thread.start()
    rewrite_blocks(directory, number)


def list_all(directory: Path) -> None:
    for path in sorted(directory.glob("*-*-*")):
        say("file", path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    table = (directory / TABLE).read_bytes() if (directory / TABLE).exists() else b""
    for number in range(len(table) // BLOCK):
        block = table[number * BLOCK :][:BLOCK]
        if any(block):
            counter = block[:15].decode(errors="replace")
            whole = counter.isdigit() and block == block_of(int(counter))
            say("block", number, int(counter) if whole else "torn")


if __name__ == "__main__":
    where = Path(sys.argv[2])
    if sys.argv[1] == "write":
        write(where, int(sys.argv[3]))
    else:
        list_all(where)

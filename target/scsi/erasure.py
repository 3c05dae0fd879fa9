"""SANITIZE and FORMAT UNIT as work in the background (SBC-3 4.11, 5.4): what goes on over resets, aborts and restarts.

    idle --start--> running --the whole range done, flushed--> idle
                       \\--a store error--> failed --another success, or EXIT FAILURE MODE if AUSE was set--> idle

What is running is saved before it begins, so a daemon that dies begins it anew when it is back.  While it runs the
medium is not ready; slices with pauses between them leave the loop to the other logical units.

It reaches what this LUN reads.  Blocks that snapshots hold stay theirs, and blocks given back keep their old bytes in
the volume until they are used again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from target.scsi.limits import ERASE_PAUSE_S, ERASE_RETRY_S, ERASE_STEP_BYTES, UNMAP_STEP_BYTES
from target.scsi.sense import Asc, CheckCondition, SenseKey
from target.scsi.store import StoreError, StoreOffline

if TYPE_CHECKING:
    from target.scsi.unit import LogicalUnit

SAVED = "erasure"
INVERTED = bytes(255 - byte for byte in range(256))

EraseDone = Callable[[CheckCondition | None], None]


class Plan(NamedTuple):
    """What is to be done with the whole logical unit."""

    what: str
    """A key of `CODES`."""
    pattern: str = ""
    """In hex, as JSON keeps it; repeated to fill each block.  Empty: every block is unmapped."""
    passes: int = 1
    invert: bool = False
    """Each pass writes the complement of the one before."""
    may_exit: bool = False
    """AUSE: a failure can be left with EXIT FAILURE MODE."""
    failed: bool = False


# what -> (ASC while it runs, ASC once it failed)
CODES = {
    "sanitize": (Asc.LOGICAL_UNIT_NOT_READY_SANITIZE_IN_PROGRESS, Asc.SANITIZE_COMMAND_FAILED),
    "format": (Asc.LOGICAL_UNIT_NOT_READY_FORMAT_IN_PROGRESS, Asc.FORMAT_COMMAND_FAILED),
}


class Erasure:
    """The erasure of one logical unit, if any."""

    def __init__(self, lu: LogicalUnit) -> None:
        self.lu = lu
        self.plan: Plan | None = None
        """Running or failed."""
        self._offset = self._pass = 0
        self._done: EraseDone | None = None
        saved = lu.platform.saved.get(SAVED)
        if saved:
            self.plan = Plan(**json.loads(saved))
            if self.running:
                self._begin()

    @property
    def running(self) -> bool:
        return self.plan is not None and not self.plan.failed

    @property
    def condition(self) -> CheckCondition | None:
        """Why the medium cannot be used, or None."""
        if self.plan is None:
            return None
        in_progress, failed = CODES[self.plan.what]
        if self.plan.failed:
            return CheckCondition(SenseKey.MEDIUM_ERROR, failed)
        return CheckCondition(SenseKey.NOT_READY, in_progress, progress=self._progress())

    def _progress(self) -> int:
        assert self.plan is not None
        size = self.lu.store.size_bytes
        return min(65535, (self._pass * size + self._offset) * 65536 // (size * self.plan.passes))

    def start(self, plan: Plan, done: EraseDone) -> None:
        """`done` is called when it is over, with what went wrong."""
        self.plan = plan
        self._done = done
        self.lu.contents += 1
        self.lu.state_changed()
        self._save(plan, self._saved)

    def leave_failure(self) -> bool:
        """EXIT FAILURE MODE.  False if the failure must stay (AUSE was not set)."""
        if self.plan is not None and self.plan.failed:
            if not self.plan.may_exit:
                return False
            self._save(None, lambda _: None)
            self._settle(None)
        return True

    # --- steps ------------------------------------------------------------------------------------------------------

    def _save(self, plan: Plan | None, done: Callable[[BaseException | None], None]) -> None:
        self.lu.platform.save(SAVED, b"" if plan is None else json.dumps(plan._asdict()).encode(), done)

    def _saved(self, error: BaseException | None) -> None:
        if error is None:
            self._begin()
        else:  # nothing has been erased
            self._settle(CheckCondition(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE))

    def _begin(self) -> None:
        assert self.plan is not None
        self.lu.platform.note("erasure", f"{self.plan.what} begins")
        self._offset = self._pass = 0
        self.lu.platform.call_later(ERASE_PAUSE_S, self._step)

    def _step(self) -> None:
        assert self.plan is not None
        try:
            if self._offset < self.lu.store.size_bytes:
                self._erase_some(self.plan)
            elif self._pass + 1 < self.plan.passes:
                self._pass, self._offset = self._pass + 1, 0
            else:
                self.lu.store.flush(self._flushed)
                return
        except StoreOffline:
            self.lu.platform.call_later(ERASE_RETRY_S, self._step)
        except StoreError:
            self._fail()
        else:
            self.lu.platform.call_later(ERASE_PAUSE_S, self._step)

    def _erase_some(self, plan: Plan) -> None:
        store = self.lu.store
        length = min(ERASE_STEP_BYTES if plan.pattern else UNMAP_STEP_BYTES, store.size_bytes - self._offset)
        if plan.pattern:
            store.write(self._offset, memoryview(self._piece(plan))[:length])
        else:
            store.unmap(self._offset, length)
        self._offset += length

    def _piece(self, plan: Plan) -> bytes:
        pattern, block = bytes.fromhex(plan.pattern), self.lu.block_bytes
        if plan.invert and self._pass % 2:
            pattern = pattern.translate(INVERTED)
        return (pattern * (block // len(pattern) + 1))[:block] * (ERASE_STEP_BYTES // block)

    def _flushed(self, error: BaseException | None) -> None:
        if isinstance(error, StoreOffline):
            self.lu.platform.call_later(ERASE_RETRY_S, self._step)
        elif error is not None:
            self._fail()
        else:
            self._save(None, self._over)

    def _over(self, _: BaseException | None) -> None:
        # Not saved as over, it would only be done once more after a crash.
        assert self.plan is not None
        self.lu.platform.note("erasure", f"{self.plan.what} is complete")
        self._settle(None)

    def _fail(self) -> None:
        assert self.plan is not None
        self.plan = self.plan._replace(failed=True)
        what = self.plan.what
        self.lu.platform.note("erasure", f"{what} failed: hosts cannot use it until it is repeated or given up")
        self._save(self.plan, lambda _: None)
        condition = self.condition
        self._answer(condition)
        self.lu.state_changed()

    def _settle(self, condition: CheckCondition | None) -> None:
        self.plan = None
        self.lu.state_changed()
        self._answer(condition)

    def _answer(self, condition: CheckCondition | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(condition)

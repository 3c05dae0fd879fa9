"""Histories on a volume with a log: what was acknowledged, what was flushed, and what must be there after a crash.

Every change is kept as something to do again on a plain model.  A crash state that mounts says which consistency point
it stands on and how far its log goes; from these two follows, change by change, what it must hold:

- a logged change (writes, UNMAP, sizes, LUNs made and destroyed, snapshots deleted) is there if the consistency point
  or the log has it, in part if the log ends within it;
- an unlogged one (a snapshot taken, a detach, a restore) is there if the consistency point has it.

And how far it must go at least: over everything flushed, after a power cut; over everything acknowledged, after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from crc32c import crc32c

from tests.support.crash_device import CrashDevice, CrashState, Leftover, MemoryDevice
from tests.support.crash_history import History, Mark, OnItsWay, go_on
from tests.support.offline_reader import Unreadable, differences
from tests.support.volume_model import ModelVolume
from tests.support.volumes import EPOCH, errors, pattern, problems
from wafl import Lun, Step, Volume, WaflError

Redo = Callable[[ModelVolume], object]


@dataclass(slots=True)
class Change:
    redo: Redo
    before: int
    """Sequence number of the log when it began."""
    after: int
    ended: int
    """Records of the journal when it was acknowledged."""
    generation: int | None = None
    """Of the consistency point that has it, if it is not logged."""
    flushed: int | None = None
    """Records of the journal when a flush had made it durable."""


@dataclass
class LoggedHistory(History):
    log_bytes: int = 64 << 10
    changes: list[Change] = field(default_factory=list)
    frozen: dict[int, tuple[int, int]] = field(default_factory=dict)
    """generation -> changes that its consistency point has wholly, and those it may have a part of too."""
    flush_syncs: bool = True
    """Sabotage: a flush returns without a sync."""
    batched: bool = False
    """As the daemon has it: records reach the log together, before anything is acknowledged."""
    pushes: bool = True
    """Sabotage: with `batched`, it is acknowledged before."""

    def __post_init__(self) -> None:
        self.device = CrashDevice(self.size_bytes)
        Volume.format(self.device, name="crash", now=EPOCH, log_bytes=self.log_bytes)
        self.volume = Volume.mount(self.device)
        if self.batched:
            self.volume.batch_log()
        self.marks.append(Mark(self.volume.generation, 0, self.device.journal.position, self.model.copy()))
        self.frozen[self.volume.generation] = (0, 0)
        self._seed = 0

    @property
    def _seq(self) -> int:
        assert self.volume.core.log is not None
        return self.volume.core.log.seq

    def _logged(self, action: Callable[[], object], redo: Callable[[], Redo]) -> object:
        """One change that the log has."""
        before = self._seq
        done = action()
        if self.pushes:
            self.volume.push_log()
        self.changes.append(Change(redo(), before, self._seq, self.device.journal.position))
        return done

    @contextmanager
    def _relief(self) -> Iterator[None]:
        """Also of a full log; a consistency point made in the middle of a change may have a part of it."""
        generation, number = self.volume.generation, len(self.changes)
        try:
            with super()._relief():
                yield
        finally:
            for made in range(generation + 1, self.volume.generation + 1):
                self.frozen.setdefault(made, (number, number + 1))

    # -- guests and administrators

    def create(self, name: str, size_bytes: int) -> Lun:
        lun = self._logged(lambda: History.create(self, name, size_bytes),
                           lambda: lambda model: model.create_lun(name, size_bytes))  # fmt: skip
        assert isinstance(lun, Lun)
        return lun

    def create_backed(self, name: str, snapshot: str, parent: str) -> Lun:
        lun = self._logged(lambda: History.create_backed(self, name, snapshot, parent),
                           lambda: lambda model: model.create_backed(name, snapshot, parent))  # fmt: skip
        assert isinstance(lun, Lun)
        return lun

    def write(self, name: str, offset: int, length: int) -> None:
        def redo() -> Redo:
            data = pattern(self._seed, length)
            return lambda model: model.luns[name].write(offset, data)

        self._logged(lambda: History.write(self, name, offset, length), redo)

    def end_write(self, write: OnItsWay) -> None:
        self._logged(lambda: History.end_write(self, write),
                     lambda: lambda model: model.luns[write.name].write(write.offset, write.data))  # fmt: skip

    def write_together(self, name: str, places: list[tuple[int, int]]) -> None:
        first = self._seed + 1

        def redo(model: ModelVolume) -> None:
            for seed, (offset, length) in enumerate(places, first):
                model.luns[name].write(offset, pattern(seed, length))

        self._logged(lambda: History.write_together(self, name, places), lambda: redo)

    def unmap(self, name: str, offset: int, length: int) -> None:
        self._logged(lambda: History.unmap(self, name, offset, length),
                     lambda: lambda model: model.luns[name].unmap(offset, length))  # fmt: skip

    def share(self, name: str, offset: int, source: str, source_offset: int, length: int) -> int:
        done = 0

        def action() -> None:
            nonlocal done
            done = History.share(self, name, offset, source, source_offset, length)

        self._logged(action, lambda: lambda model: model.share(name, offset, source, source_offset, done))
        return done

    def resize(self, name: str, size_bytes: int) -> None:
        self._logged(lambda: History.resize(self, name, size_bytes),
                     lambda: lambda model: model.luns[name].resize(size_bytes))  # fmt: skip

    def destroy(self, name: str) -> None:
        self._logged(lambda: History.destroy(self, name), lambda: lambda model: model.luns.pop(name))

    def delete_snapshot(self, name: str) -> None:
        self._logged(lambda: History.delete_snapshot(self, name), lambda: lambda model: model.delete_snapshot(name))

    def rename(self, old: str, new: str) -> None:
        self._logged(lambda: History.rename(self, old, new), lambda: lambda model: model.rename_lun(old, new))

    def rename_snapshot(self, old: str, new: str) -> None:
        self._logged(lambda: History.rename_snapshot(self, old, new),
                     lambda: lambda model: model.rename_snapshot(old, new))  # fmt: skip

    def comment(self, name: str, text: str) -> None:
        self._logged(lambda: History.comment(self, name, text), lambda: lambda model: None)

    def detach(self, name: str) -> None:
        super().detach(name)

        def redo(model: ModelVolume) -> None:
            model.luns[name].backing = None

        self._unlogged(redo, self.volume.core.generation)

    def restore(self, snapshot: str, name: str | None = None) -> None:
        before, number = self.volume.generation, len(self.changes)
        super().restore(snapshot, name)
        self._unlogged(lambda model: model.restore(snapshot, name), self.volume.generation)
        for made in range(before + 1, self.volume.generation):
            self.frozen[made] = (number, number)
        self.frozen[self.volume.generation] = (number + 1, number + 1)

    def _unlogged(self, redo: Redo, generation: int) -> None:
        seq = self._seq
        self.changes.append(Change(redo, seq, seq, self.device.journal.position, generation))

    def flush(self) -> None:
        if self.flush_syncs:
            self.volume.sync()
        self.note_flushed()

    def note_flushed(self) -> None:
        """Everything logged so far is durable."""
        for change in self.changes:
            if change.flushed is None and change.generation is None:
                change.flushed = self.device.journal.position

    def checkpoint(self, between: Callable[[], None] | None = None, snapshot: str | None = None) -> None:
        begun, frozen = self.device.journal.position, self.model.copy()
        if snapshot is not None:
            with self._relief():
                self.volume.request_snapshot(snapshot)
        generation = self.volume.core.generation
        if snapshot is not None:
            self.model.take_snapshot(snapshot)
            self._unlogged(lambda model: model.take_snapshot(snapshot), generation)
        number = len(self.changes)
        for step in self.volume.checkpoint():
            self.frozen.setdefault(generation, (number, number))
            if step is Step.SYNC:
                self.volume.sync()
            if between is not None:
                between()
        for change in self.changes[:number]:
            if change.flushed is None and change.generation is None:
                change.flushed = self.device.journal.position
        self.marks.append(Mark(generation, begun, self.device.journal.position, frozen))

    # -- the oracle

    def identity(self, state: CrashState) -> Hashable:
        # Beside the image: what must be there at least.
        return crc32c(state.image), self.least(state)

    def least(self, state: CrashState) -> tuple[int, int]:
        """Changes that must be there, and the consistency point: what was flushed by then; all that was acknowledged,
        if the kernel lived on."""
        changes = max(
            (number for number, change in enumerate(self.changes, 1) if change.generation is None and (
                (change.flushed is not None and change.flushed <= state.point)
                or (state.leftover is Leftover.ALL and change.ended <= state.point)
            )), default=0,
        )  # fmt: skip
        return changes, max(mark.generation for mark in self.marks if mark.durable <= state.point)

    def verdict(self, state: CrashState) -> str | None:
        return self.verdict_on(MemoryDevice(state.image), self.least(state), str(state))

    def verdict_on(self, device: MemoryDevice, least: tuple[int, int], where: str,
                   stands_on: int | None = None) -> str | None:  # fmt: skip
        """`stands_on`: the consistency point that an earlier mount of the same image found, if there was one."""
        try:
            volume = Volume.mount(device)
            # The mount has made a consistency point of its own.
            generation, seq = stands_on or volume.generation - 1, self._seq_of(volume)
            if generation not in self.frozen or generation < least[1]:
                return f"{where}: mounted generation {generation}, though {least[1]} was durable"
            here = f"{where}, generation {generation}, log up to {seq}"
            low, high, missing = self._expected(generation, seq, least[0])
            if missing is not None:
                return f"{here}: change {missing} of the first {least[0]} is lost"
            wrong = set(differences(device, low))
            wrong = (wrong and wrong & set(differences(device, high))) or set(errors(device))
            if not wrong:
                go_on(volume)
                wrong = {f"after going on: {finding}" for finding in problems(device)}
        except (WaflError, Unreadable) as error:
            return f"{where}: {type(error).__name__}: {error}"
        return f"{here}: {min(wrong)}" if wrong else None

    @staticmethod
    def _seq_of(volume: Volume) -> int:
        assert volume.core.log is not None
        return volume.core.log.seq

    def _expected(self, generation: int, seq: int, least: int) -> tuple[ModelVolume, ModelVolume, int | None]:
        """The model without and with the change that may be there in part, and a change that is not there and must."""
        whole, part = self.frozen[generation]
        low, high, missing = ModelVolume(), ModelVolume(), None
        for number, change in enumerate(self.changes):
            if change.generation is not None:
                here = low_too = generation >= change.generation
            else:
                low_too = number < whole or change.after <= seq
                here = low_too or number < part or change.before < seq
                if not here and number < least and missing is None:
                    missing = number
            if low_too:
                change.redo(low)
            if here:
                change.redo(high)
        return low, high, missing

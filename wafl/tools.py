"""The `wafl` command: mkfs, check, dump and salvage of a volume that no daemon has mounted.

Exit status: 0 done and nothing wrong, 1 refused, or faults found, 2 usage, 4 salvaged in part.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from wafl.check import Finding, Severity, check
from wafl.device import FileDevice
from wafl.discard import discard_log
from wafl.dump import describe, lines
from wafl.errors import WaflError
from wafl.repair import repair
from wafl.salvage import Salvage, Salvaged, SalvageLun
from wafl.volume import Volume

COPIED_IN_PART = 4

UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}


class Size(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """512, 10k, 4m, 20g, 1t."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().lower()
        shift = UNITS.get(text[-1:], 0)
        digits = text[:-1] if shift else text
        if not (digits.isascii() and digits.isdigit()):
            self.fail(f"{value!r} is not a size such as 512, 10k, 4m, 20g or 1t", param, ctx)
        return int(digits) << shift


class _Refusing(click.Group):
    """Turns an expected error into one line on stderr and status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WaflError as error:
            reason = f"{error.name}: {error}"
        except OSError as error:
            reason = f"{error.filename}: {error.strerror or error}" if error.filename else str(error)
        except click.UsageError:
            raise
        except click.ClickException as error:
            reason = error.message
        click.echo(f"wafl: {reason}", err=True)
        sys.exit(1)


@click.group(cls=_Refusing)
@click.version_option(package_name="lazylun", prog_name="wafl")
def main() -> None:
    """Make, check and show volumes that no daemon has mounted."""


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-n", "--name", help="Name of the volume; default: the file's, without its suffix.")
@click.option("-s", "--size", type=Size(), help="Create a file of this size (512, 10k, 4m, 20g, 1t).")
@click.option("-f", "--force", is_flag=True, help="Format what holds a volume already.")
def mkfs(path: Path, name: str | None, size: int | None, force: bool) -> None:
    """Make a volume.  In a new file with --size, or on a block device or file that is there."""
    if size is None and not path.exists():
        raise click.UsageError(f"{path} is not there; --size SIZE makes a file")
    if size is not None and path.exists():
        raise click.ClickException(f"{path} is there already; without --size it is used as it is")
    with closing(FileDevice.open(path, create_bytes=size)) as device:
        if size is None and not force and _holds_volume(device):
            raise click.ClickException(f"{path} holds a volume already; --force destroys it")
        try:
            Volume.format(device, name=name or path.stem, now=time.time())
        except Exception:
            if size is not None:
                path.unlink()
            raise
        click.echo(f"{path}: volume {name or path.stem}, {device.size_bytes} bytes")


@main.command("check")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--metadata-only", is_flag=True, help="Do not read the blocks that hold LUN data.")
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON.")
@click.option("--repair", "mend", is_flag=True, help="Make maps, counters and spare copies again from the trees.")
@click.option("--dry-run", is_flag=True, help="With --repair: say what would be done, and change nothing.")
def check_command(path: Path, metadata_only: bool, as_json: bool, mend: bool, dry_run: bool) -> None:
    """Prove that every block is reachable as the maps say, or free.

    What is wrong is listed.  With --repair, make good what can be, then list what is still wrong."""
    if dry_run and not mend:
        raise click.UsageError("--dry-run goes with --repair")
    with closing(FileDevice.open(path, read_only=not mend or dry_run)) as device:
        for line in repair(device, dry_run=dry_run) if mend else ():
            click.echo(f"{'would be repaired' if dry_run else 'repaired'}: {line}", err=as_json)
        findings = check(device, data=not metadata_only)
    if as_json:
        click.echo(json.dumps([_as_json(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(str(finding))
        click.echo(f"{path}: {_summary(findings)}", err=bool(findings))
    sys.exit(any(finding.severity is Severity.ERROR for finding in findings))


@main.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--trees", is_flag=True, help="Count the pointers of each tree, level by level.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def dump(path: Path, trees: bool, as_json: bool) -> None:
    """Show label, fsinfo, snapshots, LUNs and trees."""
    with closing(FileDevice.open(path, read_only=True)) as device:
        described = describe(device, trees=trees)
    click.echo(json.dumps(described, indent=2) if as_json else "\n".join(lines(described)))


@main.command("discard-log")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("-f", "--force", is_flag=True, help="Yes: what was flushed since the last consistency point may go.")
def discard_log_command(path: Path, force: bool) -> None:
    """Go on without the log, from the last consistency point.  For a log that is lost with its device, or damaged."""
    if not force:
        raise click.ClickException(
            "what hosts flushed since the last consistency point goes with the log; copy the volume, then use -f"
        )
    generation = discard_log(FileDevice.open(path))
    click.echo(f"{path}: goes on from consistency point {generation}, without its log")


@main.command("salvage")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--list", "list_only", is_flag=True, help="List the LUNs that can be found (the default without --lun).")
@click.option("--lun", "name", help="Copy this LUN.")
@click.option("--snapshot", default="", help="... as it is in this snapshot.")
@click.option("--to", "target", type=click.Path(path_type=Path), help="File to make: raw and sparse.")
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def salvage_command(path: Path, list_only: bool, name: str | None, snapshot: str, target: Path | None,
                    as_json: bool) -> None:  # fmt: skip
    """Copy LUNs off a volume that cannot be mounted whole.  Status 4: copied, but not all of it could be read."""
    if (name is None) != (target is None) or (list_only and name):
        raise click.UsageError("give --lun NAME and --to FILE to copy, or --list")
    with closing(FileDevice.open(path, read_only=True)) as device:
        found = Salvage(device)
        if name is None or target is None:
            shown = [_shown(lun) for lun in found.luns()]
            lines_of = ["\t".join(map(str, each.values())) for each in shown]
            click.echo(json.dumps(shown, indent=2) if as_json else "\n".join(lines_of))
            return
        lun = found.find(name, snapshot)
        with click.progressbar(length=lun.size_bytes, label=lun.path, file=sys.stderr) as bar:
            done = found.copy(lun, target, lambda at, total: bar.update(at - bar.pos))
    _tell(lun, done, as_json)
    sys.exit(COPIED_IN_PART if done.lost_bytes else 0)


def _shown(lun: SalvageLun) -> dict[str, Any]:
    return {
        "path": lun.path, "size_bytes": lun.size_bytes, "generation": lun.generation, "readable": lun.root is not None,
        "problem": lun.problem,
    }  # fmt: skip


def _tell(lun: SalvageLun, done: Salvaged, as_json: bool) -> None:
    if as_json:
        lost = [{"offset": offset, "length": length} for offset, length in done.lost]
        click.echo(json.dumps({"copied_bytes": done.copied_bytes, "lost_bytes": done.lost_bytes, "lost": lost}))
        return
    for offset, length in done.lost:
        click.echo(f"lost: bytes {offset} to {offset + length - 1}")
    if lun.problem:
        click.echo(f"{lun.path}: {lun.problem}", err=True)
    click.echo(f"{lun.path}: {done.copied_bytes} bytes copied, {done.lost_bytes} could not be read", err=True)


def _holds_volume(device: FileDevice) -> bool:
    try:
        describe(device)
    except WaflError:
        return False
    return True


def _as_json(finding: Finding) -> dict[str, str]:
    return {"severity": finding.severity.name.lower(), "what": finding.what, "where": finding.where}


def _summary(findings: list[Finding]) -> str:
    if not findings:
        return "clean"
    counts = {severity: sum(f.severity is severity for f in findings) for severity in reversed(Severity)}
    return ", ".join(
        f"{count} {severity.name.lower()}{'s' if count > 1 else ''}" for severity, count in counts.items() if count
    )

"""The objects of the API, as pydantic models: they are its OpenAPI schema.

Sizes are bytes, times are seconds since 1970 (UTC), rates are bytes a second.  A request refuses fields it
does not know, so that a misspelt one is never ignored.  Secrets exist in requests only.


"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from target.management.state import NETWORKS_PER_ACCOUNT

MAX_SIZE_BYTES = 1 << 62
"""No volume comes near; it keeps arithmetic within 64 bits."""

Size = Annotated[int, Field(ge=0, le=MAX_SIZE_BYTES)]
Path = Annotated[str, Field(min_length=1, max_length=1024, examples=["/vol/vol0/lun0"])]
Name = Annotated[str, Field(min_length=1, max_length=255)]
Comment = Annotated[str, Field(max_length=254)]
# RFC 7143 12.1.3: a CHAP secret shorter than 96 bits must not be used without IPsec; the upper end is CHAP_R's.
# `security` checks it, and says so in words.
Secret = Annotated[SecretStr, Field(json_schema_extra={"minLength": 12, "maxLength": 255})]
User = Annotated[str, Field(min_length=1, max_length=255)]
Initiator = Annotated[str, Field(min_length=1, max_length=255, examples=["iqn.1993-08.org.debian:01:abcdef"])]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorBody(BaseModel):
    error: str = Field(description="Short name of the refusal, stable for scripts")
    message: str = Field(description="One line that says what to do")
    holders: list[str] = Field(default=[], description="What stands in the way: LUNs, snapshots, sessions")


class DaemonInfo(BaseModel):
    product: str = "lazylun"
    version: str
    api: str = "v1"
    pid: int
    nodename: str
    started_at: float
    state_directory: str


# -- volumes -----------------------------------------------------------------------------------------------


class Volume(BaseModel):
    name: str
    uuid: str
    path: str = Field(description="The file or block device that holds the volume")
    nvlog: str = Field(default="", description="The file or block device of a separate log; empty: within the volume")
    state: Literal["online", "offline", "failed"]
    problem: str = Field(default="", description="Why it is not online, when it should be")
    target: str = Field(description="The iSCSI target that serves its LUNs")
    size_bytes: int = 0
    used_bytes: int = 0
    free_bytes: int = 0
    full_percent: float = Field(default=0.0, description="What hosts can no longer write, of the whole volume")
    thresholds: list[int] = Field(default=[], description="Percent full at which an event says so")
    active_bytes: int = Field(default=0, description="Used by the active file system")
    snapshot_bytes: int = Field(default=0, description="Held by snapshots alone")
    reserved_bytes: int = Field(default=0, description="Kept back for consistency points")
    kept_bytes: int = Field(default=0, description="Kept back for what space-reserved LUNs may still write")
    overcommitted_bytes: int = Field(default=0, description="What they may still write and there is no room for")
    shared_bytes: int = Field(default=0, description="Saved by what is shared; a subtree counts as a block")
    generation: int = Field(default=0, description="The last durable consistency point")
    luns: int = 0
    snapshots: int = 0
    mount_report: list[str] = []
    last_scrub: ScrubReport | None = Field(default=None, description="The last scrub that ended, and what it found")


class BadBlock(BaseModel):
    vbn: int = Field(description="Block of the volume, 4096 bytes each")
    error: str
    file: str = Field(description="The LUN or the metadata file that it belongs to")
    lun: str = Field(description="Path of the LUN within the volume; empty for metadata")
    offset: int = Field(description="First byte of the file that is lost with it")
    length: int
    lost: str = Field(description="What is lost, in words")


class ScrubReport(BaseModel):
    state: Literal["completed", "stopped", "failed"]
    started_at: float
    finished_at: float
    verified_bytes: int = Field(description="Read and compared; what several share counts once")
    bad_blocks: int
    bad: list[BadBlock] = Field(default=[], description="The first 100")
    message: str = Field(default="", description="Why it failed")


class ScrubStatus(BaseModel):
    volume: str
    state: Literal["none", "running", "waiting", "completed", "stopped", "failed"] = Field(
        default="none", description="waiting: it starts again when the volume is online"
    )
    started_at: float | None = None
    completed_bytes: int = 0
    total_bytes: int = 0
    percent: float = 0.0
    limit_bytes_s: int | None = None
    bad_blocks: int = 0
    bad: list[BadBlock] = Field(default=[], description="The first 100")
    message: str = ""
    operation: str | None = Field(default=None, description="Operation to wait for or cancel")
    last: ScrubReport | None = Field(default=None, description="The last one that ended")


class ScrubStart(Request):
    limit_bytes_s: Annotated[int, Field(ge=1, le=MAX_SIZE_BYTES)] | None = None


class VolumeCreate(Request):
    name: Name
    size_bytes: Size | None = Field(default=None, description="Not needed for a block device: all of it")
    path: Path | None = Field(default=None, description="File to create, or block device; else in the state directory")
    adopt: bool = Field(default=False, description="Register the volume that is already at `path`, data and all")
    force: bool = Field(default=False, description="Format a block device that holds a volume already")
    nvlog: Path | None = Field(default=None, description="A log of its own: block device, or file (made if not there)")


class VolumePatch(Request):
    online: bool | None = None
    thresholds: list[int] | None = Field(default=None, description="Percent full at which an event says so; [] is none")
    nvlog: str | None = Field(
        default=None, max_length=4096, description="Move the log of an offline volume; empty: into the volume"
    )
    size_bytes: Size | None = Field(default=None, description="Larger than now; a block device must be so already")


# -- LUNs --------------------------------------------------------------------------------------------------


class Backing(BaseModel):
    path: str = Field(description="Path of the LUN inside the snapshot")
    snapshot: str
    snapshot_id: int
    lun: str
    limit_bytes: int


class MapEntry(BaseModel):
    igroup: str
    lun_id: int


class CloneStatus(BaseModel):
    path: str
    state: str = Field(description="none, created, queued, running, paused, completed, failed or stopped")
    requested: bool = Field(description="The clone is wanted, also over a restart")
    backing: str = Field(default="", description="Path of what the LUN still reads through")
    completed_blocks: int = 0
    total_blocks: int = 0
    copied_blocks: int = 0
    shared_blocks: int = Field(default=0, description="Adopted by pointer, with what hosts wrote meanwhile")
    skipped_blocks: int = Field(default=0, description="Completed by hosts, which wrote or unmapped them")
    present_blocks: int = Field(default=0, description="What the LUN had of its own when the job began")
    bad_blocks: int = Field(default=0, description="Passed over, because they could not be read")
    percent: float = 0.0
    rate_bytes_s: float = 0.0
    remaining_s: float | None = None
    limit_bytes_s: int | None = Field(default=None, description="Bandwidth limit, if the job has one")
    priority: str = "normal"
    full_speed: bool = Field(default=False, description="It gives way to nobody")
    policy: str = Field(default="report", description="What it does about source blocks that cannot be read")
    share: bool = Field(default=False, description="It shares the snapshot's blocks instead of copying them")
    queue_place: int | None = Field(default=None, description="How many jobs come before it, while it is queued")
    holders: list[str] = Field(
        default=[], description="What keeps the backing snapshot: LUNs, and later snapshots; in the list the first 8"
    )
    holder_count: int = 0
    message: str = Field(default="", description="Why it is paused, failed or stopped")
    operation: str | None = Field(default=None, description="Operation to wait for or cancel")


class Lun(BaseModel):
    path: str
    volume: str
    name: str
    uuid: str
    serial: str
    naa: str
    ostype: str
    comment: str
    size_bytes: int
    block_bytes: int
    used_bytes: int
    private_bytes: int = Field(description="Of the used: what no snapshot can hold, or less until it is counted again")
    kept_bytes: int = Field(description="Kept back for what may still be written to it; 0 if it is not space-reserved")
    online: bool
    reserved: bool
    removable: bool = False
    write_protected: bool = False
    fully_provisioned: bool = False
    native_blocks: bool = False
    created_at: float
    target: str
    backing: Backing | None = None
    clone: CloneStatus | None = Field(default=None, description="The lazy clone, for a LUN that has or had one")
    maps: list[MapEntry] = []
    stats: dict[str, int] = Field(default={}, description="Reads, writes and bytes of hosts since the daemon's start")


class LunBacking(Request):
    path: Path = Field(description="A LUN in a snapshot, or a LUN: then a snapshot is made for the purpose")
    snapshot: Name | None = Field(default=None, description="With a LUN outside a snapshot: the snapshot to use")


class LunCreate(Request):
    path: Path
    size_bytes: Size | None = Field(default=None, description="Not with `backing`: the size is its parent's")
    backing: LunBacking | None = None
    ostype: str | None = Field(default=None, description="Default: linux, or the parent's")
    reserved: bool | None = Field(default=None, description="Default: true, or what the parent is")
    comment: Comment = ""
    block_bytes: Literal[512, 4096] = 512


class LunPatch(Request):
    path: Path | None = Field(default=None, description="New path, in the same volume")
    size_bytes: Size | None = None
    online: bool | None = None
    reserved: bool | None = None
    removable: bool | None = Field(default=None, description="Hosts see a disk whose medium they can eject and load")
    write_protected: bool | None = Field(default=None, description="Hosts can read only")
    fully_provisioned: bool | None = Field(default=None, description="Hosts see no thin provisioning and cannot unmap")
    native_blocks: bool | None = Field(default=None, description="Hosts see physical blocks as large as logical ones")
    comment: Comment | None = None
    serial: Annotated[str, Field(min_length=1, max_length=31)] | None = None
    force: bool = Field(default=False, description="Allow a resize that cuts data off")


# -- snapshots ---------------------------------------------------------------------------------------------


class DepartureWait(BaseModel):
    path: str
    why: str
    stuck: bool = Field(description="It does not end by itself")


class Departure(BaseModel):
    """A snapshot that goes as soon as nothing holds it any more."""

    asked_at: float
    missing_bytes: int = Field(description="What the clones of its LUNs still have to copy")
    waits_for: list[DepartureWait]


class Snapshot(BaseModel):
    volume: str
    name: str
    id: int
    created_at: float
    generation: int
    busy: bool
    holders: list[str] = []
    referenced_bytes: int | None = Field(default=None, description="In all its blocks; null in lists without `space`")
    reclaimable_bytes: int | None = Field(default=None, description="What deleting it would give back; null likewise")
    departure: Departure | None = Field(default=None, description="It is on its way out, and what it waits for")


class Reclaimable(BaseModel):
    volume: str
    snapshots: list[str]
    reclaimable_bytes: int = Field(description="What deleting all of them would give back")


class SnapshotLun(BaseModel):
    path: str
    name: str
    size_bytes: int
    ostype: str
    backing: str = ""


class SnapshotCreate(Request):
    name: Name


class SnapshotPatch(Request):
    name: Name


class SnapshotRestore(Request):
    path: Path | None = Field(default=None, description="One LUN, found in the snapshot by its UUID; else the volume")
    force: bool = Field(default=False, description="Though hosts see the LUNs, and though younger LUNs are destroyed")


class Restored(BaseModel):
    volume: str
    snapshot: str
    restored: list[str] = Field(description="LUNs that were there and have their old contents and size again")
    returned: list[str] = Field(description="LUNs that had been destroyed and are back, with their identity")
    destroyed: list[str] = Field(description="LUNs that are younger than the snapshot")
    unmapped: list[str] = Field(description="Of those that are back: no igroup has a map of them")


# -- igroups and maps --------------------------------------------------------------------------------------


class IgroupMap(BaseModel):
    path: str
    lun_id: int


class Igroup(BaseModel):
    name: str
    ostype: str
    initiators: list[str]
    maps: list[IgroupMap] = []


class IgroupCreate(Request):
    name: Name
    ostype: str = "linux"
    initiators: Annotated[list[Initiator], Field(max_length=1024)] = []


class InitiatorsAdd(Request):
    initiators: Annotated[list[Initiator], Field(min_length=1, max_length=1024)]


class LunMap(BaseModel):
    path: str
    igroup: str
    lun_id: int
    target: str


class MapCreate(Request):
    path: Path
    igroup: Name
    lun_id: int | None = Field(default=None, ge=0, lt=16384, description="Default: the lowest that is free")


# -- iSCSI -------------------------------------------------------------------------------------------------


class IscsiStatus(BaseModel):
    nodename: str
    portals: list[str]
    targets: list[str]
    sessions: int
    connections: int
    discovery_authentication: bool = Field(description="Discovery asks for the same proof as a normal session")


class IscsiPatch(Request):
    nodename: Initiator | None = None
    discovery_authentication: bool | None = None


class Portal(BaseModel):
    address: str
    group: int = Field(description="Target portal group tag")
    listening: bool
    configured_by: Literal["command line", "administrator"]
    problem: str = ""


class PortalCreate(Request):
    address: Annotated[str, Field(min_length=1, max_length=100, examples=["192.0.2.1:3260"])]
    group: Annotated[int, Field(ge=1, le=65535, description="Target portal group tag")] = 1


AccessState = Literal["active-optimized", "active-non-optimized", "standby", "unavailable"]
ChangedBy = Literal["nobody", "host", "administrator"]


class PortGroupAccess(BaseModel):
    group: int = Field(description="Target portal group tag, which is the target port group's number")
    state: AccessState
    changed_by: ChangedBy = Field(description="Whoever set it last; nobody: as it is from the start")
    portals: list[str]


class PortGroupPut(Request):
    group: Annotated[int, Field(ge=1, le=65535)]
    state: AccessState


class Connection(BaseModel):
    session: str
    cid: int
    initiator: str
    target: str
    local_address: str
    peer_address: str
    header_digest: str = ""
    data_digest: str = ""


class Session(BaseModel):
    id: str
    kind: Literal["normal", "discovery"]
    initiator: str
    initiator_alias: str = ""
    isid: str
    tsih: int
    target: str
    authenticated_as: str = ""
    created_at: float | None = None
    tasks: int = Field(default=0, description="Commands in progress")
    connections: list[Connection] = []
    parameters: dict[str, Any] = Field(default={}, description="What was negotiated")
    counters: dict[str, int] = {}


class Account(BaseModel):
    """A CHAP account as it may be shown: never with its secrets."""

    initiator: str = Field(description="Empty: the default, for initiators without an account")
    method: Literal["chap", "none", "deny"]
    user: str = ""
    mutual: bool = False
    out_user: str = ""
    networks: list[str] = Field(default=[], description="Where it may come from; empty: from anywhere")


class AccountPut(Request):
    method: Literal["chap", "none", "deny"] = "chap"
    user: User | None = None
    secret: Secret | None = None
    out_user: User | None = None
    out_secret: Secret | None = None
    networks: Annotated[
        list[Annotated[str, Field(max_length=64)]],
        Field(max_length=NETWORKS_PER_ACCOUNT, description="Refuse it from elsewhere; CIDR, as 192.0.2.0/24"),
    ] = []


class Redirect(BaseModel):
    volume: str
    target: str
    address: str = Field(description="Where logins to the target are sent")
    permanent: bool


class RedirectPut(Request):
    address: Annotated[str, Field(min_length=1, max_length=100, examples=["192.0.2.1:3260"])]
    permanent: bool = Field(default=False, description="Initiators are to remember the new address")


class LogoutRequest(Request):
    time_s: Annotated[int, Field(ge=0, le=3600)] = Field(
        default=10, description="The session is closed if the initiator has not logged out by then"
    )


# -- work and history --------------------------------------------------------------------------------------


class Operation(BaseModel):
    id: str
    kind: str
    subject: str
    state: Literal["running", "done", "failed", "cancelled"]
    completed: int
    total: int
    percent: float
    message: str
    created_at: float
    finished_at: float | None
    error: ErrorBody | None
    result: dict[str, Any]


class Event(BaseModel):
    seq: int
    time: float
    kind: str
    severity: Literal["info", "notice", "warning", "error"]
    subject: str
    message: str
    data: dict[str, Any]

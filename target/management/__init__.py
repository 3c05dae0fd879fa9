"""The administrator's side of the target: what exists, who may use it, and the HTTP API over both.

Layers, each importing only those above it:

    refusal, names      why something is refused; the shapes of names and paths
    policies            thresholds, autodelete and snapshot schedule of a volume
    store               igroups, maps, CHAP accounts, portals and the volume registry, in SQLite
    events, operations  what happened; what is still happening
    models              the objects of the API
    volumes, luns, snapshots, clones, access, security, iscsi
                        the services: they do the work and know no HTTP
    space_watch, autodelete, schedules, housekeeping
                        what the daemon does by itself, by the policies
    directory           what the iSCSI core asks (`target.iscsi.ports.TargetDirectory`)
    routes_*, api, server, metrics
                        HTTP over the services

Rules.  Services run on the event loop's thread, so a change of state that does not await cannot be seen
half done; changes that do await are serialised by one lock (`Core.changing`).  Whatever an administrator
can see is durable before the call returns: SQLite has committed, and the volume has passed a consistency
point.  File-system state (LUNs, snapshots) is never copied into SQLite: maps name a LUN by its UUID.
"""

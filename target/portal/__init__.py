"""The network side of the target: listeners, connections, addresses.  All of it runs on one asyncio loop.

Knows sockets, the clock and randomness, and hands them to `target.iscsi`, which knows none of them.
Knows no SCSI and no volume.

For whoever puts a daemon together::

    registry = Registry()                               # target.iscsi.registry: targets, sessions, counters
    portal = Portal(directory, registry, config=PortalConfig(...))
    await portal.start("0.0.0.0", 3260, tpgt=1)         # as often as wanted; "::" too; port 0 takes a free one
    portal.listening                                    # [("0.0.0.0", 3260)], with the real port
    portal.addresses()                                  # ["192.0.2.7:3260,1", "[2001:db8::7]:3260,1"]: TargetAddress
    await portal.stop(logout_time_s=0)                  # closes listeners and connections; sessions end

- `directory` is a `TargetDirectory` (target.iscsi.ports).  Where its `visible_targets` gives a target with an empty
  address list, the connection fills in `portal.addresses()`; a wildcard listener is expanded to the machine's
  addresses, followed as they change.
- `registry` is what management lists and disconnects: `registry.sessions()` gives `SessionInfo` objects,
  `registry.targets[iqn].sessions`, `registry.disconnect(...)`, `registry.request_logout(...)`.
- `start` raises OSError when the address cannot be bound.
"""

from target.portal.portal import Portal, PortalConfig

__all__ = ["Portal", "PortalConfig"]

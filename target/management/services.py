"""The services of one daemon, put together."""

from __future__ import annotations

from fastapi import Request

from target.iscsi.registry import Registry
from target.management.access import Igroups, Maps
from target.management.alua import Alua
from target.management.clones import Clones
from target.management.core import Core
from target.management.data import Data
from target.management.departures import Departures
from target.management.families import Families
from target.management.iscsi import Iscsi
from target.management.layouts import Layouts
from target.management.luns import Luns
from target.management.policy_service import PolicyService
from target.management.redirects import Redirects
from target.management.restore import Restores
from target.management.rollouts import Rollouts
from target.management.scrubs import Scrubs
from target.management.security import Security
from target.management.snapshots import Snapshots
from target.management.volumes import Volumes
from target.portal import Portal


class Services:
    def __init__(self, core: Core, portal: Portal, registry: Registry) -> None:
        self.core = core
        self.clones = Clones(core)
        self.scrubs = Scrubs(core)
        self.snapshots = Snapshots(core)
        self.departures = Departures(core, self.clones, self.snapshots)
        self.volumes = Volumes(core, self.clones, self.scrubs, self.departures)
        self.luns = Luns(core, self.clones)
        self.rollouts = Rollouts(core, self.luns)
        self.layouts = Layouts(core)
        self.families = Families(core)
        self.restores = Restores(core, self.clones)
        self.policies = PolicyService(core)
        self.igroups = Igroups(core)
        self.maps = Maps(core)
        self.security = Security(core)
        self.iscsi = Iscsi(core, portal, registry)
        self.alua = Alua(core, self.iscsi)
        self.redirects = Redirects(core, portal)
        self.data = Data(core)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services

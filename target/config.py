"""`lund`'s configuration file (TOML) and its limits.  What the command line says comes before what the file says.

workers = "volumes"

[iscsi]
listen = ["192.0.2.1:3260,1", "[2001:db8::1]:3260,2"]
nodename = "iqn.2025-11.net.example:store1"
nop_interval_s = 60
nop_timeout_s = 30
logout_time_s = 0
spin_us = { "192.0.2.1:3260" = 100 }

[management]
socket = "/run/lund.sock"
addresses = ["https://store1.example.net/"]

[volumes]
cache_mib = 64
checkpoint_s = 10

[clones]
limit_bytes_s = 100_000_000

[log]
level = "info"
syslog = true
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from target.iscsi import limits
from target.portal.spin import SPIN_MAX_US

URL = r"^[a-z][a-z0-9+.-]{0,19}://[!-~]{1,220}$"


PLAINLY = {
    "extra_forbidden": "there is no such setting; docs/operating.md has them all",
    "model_type": "this is a section, written as [NAME]",
    "string_pattern_mismatch": "this is not a URL such as https://store1.example.net/",
}
"""Where the validator's own words would tell an administrator nothing."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class IscsiConfig(Section):
    listen: list[str] = Field(default=[], max_length=64)
    """ADDR:PORT[,GROUP]; none at all (here, on the command line and by `lun iscsi portal add`) means every address."""
    nodename: str | None = None
    """Used on the first start; later `lun iscsi nodename` changes it."""
    nop_interval_s: Annotated[float, Field(ge=1, le=3600)] = limits.NOP_INTERVAL_S
    """Silence of an initiator after which it is asked whether it is still there."""
    nop_timeout_s: Annotated[float, Field(ge=1, le=3600)] = limits.NOP_TIMEOUT_S
    """Silence after that which ends the connection."""
    logout_time_s: Annotated[int, Field(ge=0, le=300)] = 0
    """On stopping, initiators are asked to log out and given so long.  Not for a restart: they would not come back."""
    spin_us: dict[str, Annotated[int, Field(ge=0, le=SPIN_MAX_US)]] = Field(default={}, max_length=64)
    """By ADDR:PORT of a portal: how long it looks for more after its last traffic before it sleeps.  Costs CPU time."""


class ManagementConfig(Section):
    socket: Path | None = None
    """Default: lund.sock in the state directory."""
    addresses: Annotated[list[Annotated[str, Field(pattern=URL)]], Field(max_length=8)] = []
    """URLs that hosts are told of (VPD page 85h): where a proxy, or whatever people use, makes the API reachable."""


class VolumesConfig(Section):
    cache_mib: Annotated[int, Field(ge=1, le=1 << 20)] = 64
    """Pointer blocks kept in memory, per volume."""
    checkpoint_s: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    """The longest time between consistency points while there is something to write."""


class ClonesConfig(Section):
    limit_bytes_s: Annotated[int, Field(ge=1)] | None = None
    """All clone jobs together."""


class LogConfig(Section):
    level: Literal["debug", "info", "notice", "warning", "error"] = "info"
    syslog: bool = True
    """To /dev/log, if that is there."""


class Config(Section):
    workers: Literal["none", "volumes"] = "none"
    """One process for everything, or one more for each volume (target.workers)."""
    iscsi: IscsiConfig = IscsiConfig()
    management: ManagementConfig = ManagementConfig()
    volumes: VolumesConfig = VolumesConfig()
    clones: ClonesConfig = ClonesConfig()
    log: LogConfig = LogConfig()


class ConfigError(Exception):
    """One line about the file."""


def read_config(path: Path) -> Config:
    try:
        with path.open("rb") as file:
            return Config.model_validate(tomllib.load(file))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {PLAINLY.get(first['type'], first['msg'])}") from None

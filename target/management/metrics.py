"""/metrics for Prometheus: everything is collected when it is asked for, nothing is counted twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cloner import CloneStatus, JobState
from target.management import serving
from target.management.services import Services
from target.management.wishes import wishes_of
from wafl import BLOCK_BYTES

VOLUME_GAUGES = {
    "size_bytes": "Size of the volume",
    "used_bytes": "Bytes in use",
    "free_bytes": "Bytes that can still be written",
    "full_percent": "Percent of the volume that thin LUNs can no longer write",
    "active_bytes": "Bytes in use by the active file system",
    "snapshot_bytes": "Bytes held by snapshots alone",
    "kept_bytes": "Bytes kept back for what space-reserved LUNs may still write",
    "overcommitted_bytes": "Bytes that space-reserved LUNs may still write and there is no room for",
    "shared_bytes": "Bytes saved by blocks that several places share",
    "luns": "LUNs",
    "snapshots": "Snapshots",
    "generation": "Last durable consistency point",
}

CLONE_GAUGES: dict[str, tuple[Callable[[CloneStatus], float], str]] = {
    "percent": (lambda job: job.percent, "How far the clone is"),
    "copied_blocks": (lambda job: job.copied_blocks, "Blocks filled by the job"),
    "copied_bytes": (lambda job: job.copied_blocks * BLOCK_BYTES, "Bytes filled by the job"),
    "total_bytes": (lambda job: job.total_blocks * BLOCK_BYTES, "Bytes that were missing when the job began"),
    "rate_bytes_per_second": (lambda job: job.rate_bytes_s, "Bytes a second of the last ten seconds"),
}


class LundCollector(Collector):
    def __init__(self, services: Services) -> None:
        self.services = services

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._volumes()
        yield from self._luns()
        yield from self._clones()
        yield from self._iscsi()
        yield from self._daemon()

    def _volumes(self) -> Iterator[Metric]:
        volumes = self.services.volumes.all()
        online = GaugeMetricFamily("lund_volume_online", "1 if the volume serves its LUNs", labels=["volume"])
        for volume in volumes:
            online.add_metric([volume.name], volume.state == "online")
        yield online
        for field, text in VOLUME_GAUGES.items():
            gauge = GaugeMetricFamily(f"lund_volume_{field}", text, labels=["volume"])
            for volume in volumes:
                if volume.state != "offline":
                    gauge.add_metric([volume.name], getattr(volume, field))
            yield gauge

    def _luns(self) -> Iterator[Metric]:
        labels = ["lun", "uuid"]
        size = GaugeMetricFamily("lund_lun_size_bytes", "Size of the LUN", labels=labels)
        used = GaugeMetricFamily("lund_lun_used_bytes", "Bytes in blocks of the LUN's own", labels=labels)
        counters = {
            name: CounterMetricFamily(f"lund_lun_{name}", text, labels=labels)
            for name, text in serving.COUNTERS.items()
        }
        for unit in self.services.core.units.values():
            for lun in unit.volume.luns():
                key = [f"/vol/{unit.name}/{lun.name}", str(lun.uuid)]
                size.add_metric(key, lun.size_bytes)
                used.add_metric(key, lun.used_bytes)
                for name, value in serving.counters_of(self.services.core, unit, lun).items():
                    counters[name].add_metric(key, value)
        yield size
        yield used
        yield from counters.values()

    def _clones(self) -> Iterator[Metric]:
        jobs = self.services.core.clones.show()
        states = GaugeMetricFamily("lund_clone_jobs", "Clone jobs in this state", labels=["state"])
        counted = Counter(job.state for job in jobs)
        for state in JobState:
            states.add_metric([str(state)], counted[state])
        yield states
        for name, (value, text) in CLONE_GAUGES.items():
            gauge = GaugeMetricFamily(f"lund_clone_{name}", text, labels=["lun", "state"])
            for job in jobs:
                gauge.add_metric([job.path, str(job.state)], value(job))
            yield gauge
        leaving = GaugeMetricFamily("lund_snapshots_leaving", "Snapshots on their way out", labels=["volume"])
        for unit in self.services.core.units.values():
            leaving.add_metric([unit.name], len(wishes_of(self.services.core.state, unit.volume.uuid)))
        yield leaving

    def _iscsi(self) -> Iterator[Metric]:
        status = self.services.iscsi.status()
        yield GaugeMetricFamily("lund_iscsi_sessions", "iSCSI sessions", value=status.sessions)
        yield GaugeMetricFamily("lund_iscsi_connections", "iSCSI connections", value=status.connections)

    def _daemon(self) -> Iterator[Metric]:
        core = self.services.core
        yield GaugeMetricFamily("lund_start_time_seconds", "When the daemon started", value=core.started_at)
        events = CounterMetricFamily("lund_events", "Events since the start", labels=["kind", "severity"])
        for (kind, severity), count in sorted(core.events.counts.items()):
            events.add_metric([kind, severity], count)
        yield events


def page(services: Services) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LundCollector(services))
    return generate_latest(registry)

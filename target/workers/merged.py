"""Answers of several processes as one: lists one behind the other, numbers added up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Bodies = Mapping[str, bytes]
"""By volume."""
OF_THE_FRONT = ("lund_start_time_seconds", "lund_events", "lund_volume_online")


def _lists(here: bytes, there: Bodies) -> bytes:
    found = json.loads(here)
    for volume in sorted(there):
        found += json.loads(there[volume])
    return json.dumps(found, ensure_ascii=False).encode()


def _volumes(here: bytes, there: Bodies) -> bytes:
    """Each as its worker has it; the front knows those without one."""
    known = {each["name"]: each for each in json.loads(here)}
    for volume, body in there.items():
        known.update((each["name"], each) for each in json.loads(body) if each["name"] == volume)
    return json.dumps([known[name] for name in sorted(known)], ensure_ascii=False).encode()


def _iscsi(here: bytes, there: Bodies) -> bytes:
    status = json.loads(here)
    for body in there.values():
        one = json.loads(body)
        status["sessions"] += one["sessions"]
        status["connections"] += one["connections"]
    return json.dumps(status, ensure_ascii=False).encode()


class _Sum(Collector):
    """Metrics of all processes: samples of the same name and labels are added up."""

    def __init__(self, here: bytes, there: Bodies) -> None:
        self._here = here
        self._there = there

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
        for volume, body in (("", self._here), *self._there.items()):
            for family in text_string_to_metric_families(body.decode()):
                families.setdefault(family.name, family)
                kept = values.setdefault(family.name, {})
                for sample in family.samples:
                    key = sample.name, tuple(sorted(sample.labels.items()))
                    if family.name == "lund_volume_online":
                        # each process lists them all and knows of its own
                        if not volume or sample.labels["volume"] == volume:
                            kept[key] = sample.value
                    elif not volume or family.name not in OF_THE_FRONT:
                        kept[key] = kept.get(key, 0.0) + sample.value
        for name, family in families.items():
            merged = Metric(name, family.documentation, family.type)
            for (full_name, labels), value in values[name].items():
                merged.add_sample(full_name, dict(labels), value)
            yield merged


def _metrics(here: bytes, there: Bodies) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Sum(here, there))
    return generate_latest(registry)


MERGED: dict[str, Callable[[bytes, Bodies], bytes]] = {
    "/v1/volumes": _volumes,
    "/v1/luns": _lists,
    "/v1/clones": _lists,
    "/v1/operations": _lists,
    "/v1/iscsi": _iscsi,
    "/v1/iscsi/sessions": _lists,
    "/v1/iscsi/connections": _lists,
    "/metrics": _metrics,
}
"""GET of these asks every process."""

"""Answers of several processes put together."""

from __future__ import annotations

import json

from prometheus_client.parser import text_string_to_metric_families

from target.workers.merged import MERGED

HERE = b"""# HELP lund_volume_online 1 if the volume serves its LUNs
# TYPE lund_volume_online gauge
lund_volume_online{volume="vol0"} 0.0
lund_volume_online{volume="vol1"} 0.0
lund_volume_online{volume="vol2"} 0.0
# HELP lund_iscsi_sessions iSCSI sessions
# TYPE lund_iscsi_sessions gauge
lund_iscsi_sessions 1.0
# HELP lund_lun_reads_total Read commands of hosts
# TYPE lund_lun_reads_total counter
# HELP lund_start_time_seconds When the daemon started
# TYPE lund_start_time_seconds gauge
lund_start_time_seconds 1000.0
# HELP lund_events_total Events since the start
# TYPE lund_events_total counter
lund_events_total{kind="lund.started",severity="notice"} 1.0
"""


def worker(volume: str, sessions: int, reads: int) -> bytes:
    online = "\n".join(f'lund_volume_online{{volume="{each}"}} {float(each == volume)}' for each in ("vol0", "vol1"))
    return f"""# HELP lund_volume_online 1 if the volume serves its LUNs
# TYPE lund_volume_online gauge
{online}
# HELP lund_iscsi_sessions iSCSI sessions
# TYPE lund_iscsi_sessions gauge
lund_iscsi_sessions {sessions}
# HELP lund_lun_reads_total Read commands of hosts
# TYPE lund_lun_reads_total counter
lund_lun_reads_total{{lun="/vol/{volume}/a\\"b"}} {reads}
# HELP lund_start_time_seconds When the daemon started
# TYPE lund_start_time_seconds gauge
lund_start_time_seconds 2000.0
# HELP lund_events_total Events since the start
# TYPE lund_events_total counter
lund_events_total{{kind="lund.started",severity="notice"}} 5.0
""".encode()


def test_metrics_are_added_up_and_each_volume_is_its_own_process_s() -> None:
    page = MERGED["/metrics"](HERE, {"vol0": worker("vol0", 2, 10), "vol1": worker("vol1", 3, 20)})
    assert page.count(b"# TYPE lund_lun_reads_total counter") == 1
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }
    assert found == {
        ("lund_volume_online", "vol0"): 1.0,
        ("lund_volume_online", "vol1"): 1.0,
        ("lund_volume_online", "vol2"): 0.0,
        ("lund_iscsi_sessions",): 6.0,
        ("lund_lun_reads_total", '/vol/vol0/a"b'): 10.0,
        ("lund_lun_reads_total", '/vol/vol1/a"b'): 20.0,
        ("lund_start_time_seconds",): 1000.0,
        ("lund_events_total", "lund.started", "notice"): 1.0,
    }


def test_a_volume_is_shown_as_its_worker_has_it_and_without_one_as_the_front_has_it() -> None:
    here = [{"name": name, "state": "offline"} for name in ("vol0", "vol1")]
    there = [{"name": "vol0", "state": "online"}, {"name": "vol1", "state": "offline, says another"}]
    merged = json.loads(MERGED["/v1/volumes"](json.dumps(here).encode(), {"vol0": json.dumps(there).encode()}))
    assert merged == [{"name": "vol0", "state": "online"}, {"name": "vol1", "state": "offline"}]


def test_lists_follow_each_other_and_counts_are_added() -> None:
    there = {"vol1": b'["c"]', "vol0": b'["b"]'}
    assert json.loads(MERGED["/v1/luns"](b'["a"]', there)) == ["a", "b", "c"]
    counts = {"sessions": 1, "connections": 2, "nodename": "n"}
    one = json.dumps(counts).encode()
    assert json.loads(MERGED["/v1/iscsi"](one, {"vol0": one})) == {"sessions": 2, "connections": 4, "nodename": "n"}

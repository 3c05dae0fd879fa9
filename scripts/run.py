#!/usr/bin/env python3
"""`make run`: lund in the foreground, with a volume and a LUN to try, and the lines to try next.

The first start makes volume vol0 in a sparse file and /vol/vol0/lun0 on it, mapped for every initiator that can
reach the address: with the default 127.0.0.1 that is this machine alone.  Later starts find them there.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

BIN = Path(sys.executable).parent
VOLUME, VOLUME_SIZE = "vol0", "8g"
LUN, LUN_SIZE = "/vol/vol0/lun0", "1g"
IGROUP = "local"
START_LIMIT_S = 30.0


def wait_until_ready(lund: subprocess.Popen[bytes], api: httpx.Client) -> bool:
    deadline = time.monotonic() + START_LIMIT_S
    while lund.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if api.get("/v1").status_code == httpx.codes.OK:
                return True
        time.sleep(0.05)
    return False


def lun(socket: Path, *argv: str) -> None:
    print(f"  lun {' '.join(argv)}", flush=True)
    subprocess.run([BIN / "lun", "--socket", socket, *argv], check=True, stdout=subprocess.DEVNULL)


def make_defaults(socket: Path) -> None:
    print("First start; making something to try:")
    lun(socket, "vol", "create", VOLUME, "-s", VOLUME_SIZE)
    lun(socket, "create", "-s", LUN_SIZE, "-o", "noreserve", LUN)
    lun(socket, "igroup", "create", IGROUP, "*")
    lun(socket, "map", LUN, IGROUP, "0")


def shown(path: Path) -> str:
    with contextlib.suppress(ValueError):
        return str(path.resolve().relative_to(Path.cwd()))
    return str(path)


def hints(target: str, listen: str, socket: Path) -> str:
    command = f"{shown(BIN / 'lun')} --socket {shown(socket)}"
    return f"""
lund is ready: {LUN} is LUN 0 of {target} at {listen}.  Ctrl-C stops it.

In another terminal:
  {command} show -v
  {command} snap create {VOLUME} monday
  {command} create -b /vol/{VOLUME}/.snapshot/monday/lun0 /vol/{VOLUME}/copy
  {command} clone start /vol/{VOLUME}/copy

  qemu-img info iscsi://{listen}/{target}/0
  iscsi-ls -s iscsi://{listen}

As root, where the kernel has an initiator:
  iscsiadm -m discovery -t sendtargets -p {listen}
  iscsiadm -m node -T {target} -p {listen} --login
"""


def volumes(api: httpx.Client) -> dict[str, dict[str, Any]]:
    answer = api.get("/v1/volumes")
    answer.raise_for_status()
    return {volume["name"]: volume for volume in answer.json()}


def main() -> int:
    parser = argparse.ArgumentParser(description="lund in the foreground, with a LUN to try.")
    parser.add_argument("--state", type=Path, default=Path("var"))
    parser.add_argument("--listen", default="127.0.0.1:3260")
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    socket = options.state / "lund.sock"
    lund = subprocess.Popen(
        [BIN / "lund", "--state", options.state, "--socket", socket, "--listen", options.listen],
        stdin=subprocess.DEVNULL,
    )

    def pass_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            lund.send_signal(number)

    # On Ctrl-C the terminal tells lund itself; this process only waits for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, pass_on)
    transport = httpx.HTTPTransport(uds=str(socket))
    try:
        with httpx.Client(transport=transport, base_url="http://lund", trust_env=False) as api:
            if wait_until_ready(lund, api):
                if not volumes(api):
                    make_defaults(socket)
                target = volumes(api).get(VOLUME, {}).get("target", "")
                print(hints(target, options.listen, socket), flush=True)
        return lund.wait()
    except (subprocess.CalledProcessError, httpx.HTTPError) as error:
        print(f"run: {error}", file=sys.stderr)
        return 1
    finally:
        if lund.poll() is None:
            lund.terminate()
            lund.wait()


if __name__ == "__main__":
    sys.exit(main())

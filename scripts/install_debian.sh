#!/bin/sh
# install_debian.sh [PACKAGE...]: installs what is missing; without arguments everything the tests need.
# Services that the packages bring (iscsid, tgt) are not started: the tests run their own in namespaces.
set -eu

# The kernel and initiator of the test hosts, their tools, libiscsi's and QEMU's initiators, tgt for comparison, and
# systemd for its opinion of the unit file.
[ $# -gt 0 ] || set -- \
    user-mode-linux open-iscsi kmod iproute2 util-linux e2fsprogs fio sg3-utils \
    multipath-tools gcc libc6-dev libiscsi-dev libiscsi-bin qemu-utils qemu-block-extra tgt systemd

missing=
for package in "$@"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "not root, so not installed:$missing (tests that need them are skipped)" >&2
    exit 0
fi
command -v apt-get >/dev/null || { echo "no apt-get; install by hand:$missing" >&2; exit 0; }

policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
echo "installing from Debian:$missing"
apt-get -q -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 &&
    apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install --no-install-recommends \
        $missing >>"$log" 2>&1 </dev/null || { tail -n 40 "$log" >&2; exit 1; }
rm -f "$log"

#!/bin/sh
# make_venv.sh DIR REQUIREMENT: a virtual environment in DIR with the project installed editable.
set -eu
venv=$1 what=$2 python=${PYTHON:-python3}

command -v "$python" >/dev/null 2>&1 || python=/usr/bin/python3
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian ships venv as a package of its own.
    sh "$(dirname "$0")/install_debian.sh" python3 python3-venv
    "$python" -c 'import ensurepip, venv' 2>/dev/null || python=/usr/bin/python3
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "lazylun needs Python 3.11 or newer; $python is $("$python" --version). Say PYTHON=... to choose another." >&2
    exit 1
}
echo "Making a Python environment in $venv with what lazylun needs: half a minute, once."
[ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import pip' 2>/dev/null || "$python" -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$what"

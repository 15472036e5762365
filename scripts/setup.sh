#!/usr/bin/env bash
# The environment in $VENV (default: .venv beside this folder), made or completed from requirements.txt.
#
#     bash scripts/setup.sh
#
# Needs Python 3.10 or newer (python3, or the one that $PYTHON names) and pip. An environment that is there
# already is kept: pip adds what it lacks. Other scripts source this file, for `root` and `VENV`, absolute paths,
# and `setup FILE`, which adds further requirements.
set -euo pipefail

stop() {
    echo "setup: $*" >&2
    exit 2
}

# Any pip can put another one into a folder, whatever its own age and the system's rules about packages.
add_pip() {
    local site
    site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
        PIP_ROOT_USER_ACTION=ignore "${PYTHON:-python3}" -m pip install --quiet --disable-pip-version-check --target "$site" pip >&2
}

setup() (
    python=${PYTHON:-python3}
    requirements=$1
    name=$(basename "$requirements")
    stamp=$VENV/.$name # what is installed; appears only when all of it is
    new_enough='import sys; sys.exit(sys.version_info < (3, 10))'
    works() { "$VENV/bin/python" -c '' 2>/dev/null; }

    if ! works; then
        command -v "$python" >/dev/null || stop "no $python here; install Python 3.10 or newer"
        "$python" -c "$new_enough" ||
            stop "$python is $("$python" --version 2>&1), but 3.10 or newer is needed; name another one by PYTHON=..."
        [ -f "$VENV/pyvenv.cfg" ] || [ -z "$(find "$VENV" -type f 2>/dev/null | head -n 1)" ] ||
            stop "$VENV holds files, but no Python environment; empty it, or name another folder by VENV=..."
        reason=$(mkdir -p "$VENV" 2>&1) || stop "$reason"
    fi

    # One set-up at a time; the folder itself is the lock, which ends with this process however it ends.
    exec 9<"$VENV"
    if command -v flock >/dev/null && ! flock --nonblock 9 2>/dev/null; then
        echo "setup: waiting for another set-up of $VENV" >&2
        flock 9 2>/dev/null || true # some network file systems have no locks
    fi

    if ! works; then
        echo "setup: making the environment $VENV" >&2
        # Without pip, since Debian splits off what venv takes it from; it is added below.
        "$python" -m venv --clear --without-pip "$VENV" >&2 ||
            stop "$python cannot make environments; install its venv module (Debian: apt install python3-venv)"
    fi
    "$VENV/bin/python" -c "$new_enough" ||
        stop "the Python of $VENV is older than 3.10; remove it, or name another folder by VENV=..."
    if cmp -s "$requirements" "$stamp"; then return; fi

    echo "setup: installing the packages of $name into $VENV (a few minutes, up to 7 GB)" >&2
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        "$VENV/bin/python" -m ensurepip >/dev/null 2>&1 || add_pip ||
            stop "$VENV has no pip, and neither has $python; install it (Debian: apt install python3-pip)"
    fi
    cp "$requirements" "$stamp.part"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$stamp.part" >&2 ||
        stop "pip did not finish (see above); run this again to go on"
    mv "$stamp.part" "$stamp"
    echo "setup: done" >&2
)

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$root/.venv}
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
export VENV
setup "$root/requirements.txt"

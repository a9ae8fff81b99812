#!/bin/sh
# Makes .venv and installs the course into it; `setup.sh test` adds what the tests need.
# Every stop is one sentence with what to do next. An interrupted set-up is never taken for a finished one:
# .venv/unfinished is there from the first step to the last, and a later call that finds it starts again.
set -eu
cd "$(dirname "$0")/.."

extra=${1:-}
python=.venv/bin/python
torch=$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
torch_index=${TORCH_INDEX_URL:-}

stop() {
    printf '\nSet-up stopped: %s\n' "$*" >&2
    exit 1
}

# --- Is there anything to do? -----------------------------------------------------------------------------------------

# The folder belongs to it: a moved clone needs a new link to itself. The settings of ruff and pytest do not.
fingerprint() {
    pwd
    sed '/^\[tool\.ruff/,$d' pyproject.toml
}

ready() {
    [ -x $python ] && [ ! -e .venv/unfinished ] && fingerprint | cmp -s - ".venv/ready$extra" &&
        { [ -z "$torch_index" ] || [ "$torch_index" = "$(cat .venv/torch-index 2>/dev/null)" ]; }
}

# --- What has to be there first ---------------------------------------------------------------------------------------

version_of() {
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

# Sets base_python and version. A name is not enough: pyenv leaves commands on the PATH that only print an error.
choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        version=$(version_of "$PYTHON") || stop "PYTHON=$PYTHON does not start; name a Python 3.11 or 3.12, for example PYTHON=/usr/bin/python3.12."
        case $version in
        3.1[1-9]) base_python=$PYTHON ;;
        *) stop "PYTHON=$PYTHON is Python $version, and the course needs 3.11 or 3.12; name one of those." ;;
        esac
    else
        found=""
        for base_python in python3 python3.12 python3.11 ""; do
            version=$(version_of "$base_python") || continue
            case $version in 3.11 | 3.12) break ;; esac
            found=" ($base_python is Python $version)"
        done
        [ -n "$base_python" ] || stop "no Python 3.11 or 3.12 was found$found. Install one (Debian, Ubuntu: sudo apt install python3.11-venv; macOS: brew install python@3.12), or name one: make lab PYTHON=/path/to/python3.12"
    fi
    # An active .venv gives its own python, which must survive the removal of that folder.
    base_python=$("$base_python" -c 'import sys; print(getattr(sys, "_base_executable", None) or sys.executable)')
    "$base_python" -c 'import ensurepip, venv' 2>/dev/null ||
        stop "Python $version here comes without its venv module. Debian, Ubuntu: sudo apt install python$version-venv; then run the same command again."
}

# GB = 1e9 bytes. The CUDA libraries make the difference; only the index or the system tells in advance.
check_disk() {
    need=9
    hint=" (3 GB for the build without CUDA: set TORCH_INDEX_URL to the address that pytorch.org shows for pip and CPU)"
    case "$(uname -s) $torch_index" in Darwin* | */cpu*) need=3 hint="" ;; esac
    free=$(df -Pk . | awk 'NR == 2 { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+%$/) print $(i - 1) }')
    case $free in "" | *[!0-9]*) return ;; esac
    free=$((free * 1024 / 1000000000))
    [ "$free" -ge "$need" ] || stop "the course needs $need GB of disk$hint, and $(pwd) has $free GB free; make room or clone it to another disk."
}

# One small download with short timeouts tells in seconds what pip's own retries take minutes to say.
check_network() {
    $python -m pip download --quiet --no-deps --retries 1 --timeout 15 --dest .venv/tmp packaging >.venv/probe.log 2>&1 ||
        stop "pip reaches no package index; connect to the network (behind a proxy: set HTTPS_PROXY), then run the same command again. pip's words: $(pwd)/.venv/probe.log"
}

install() {
    echo "Installing $*"
    $python -m pip install "$@" ||
        stop "pip could not install this (its message stands above); run the same command again, finished downloads are kept."
}

# --- The set-up -------------------------------------------------------------------------------------------------------

if [ -n "${PYTHON:-}" ] && [ -x $python ] && [ "$(version_of "$PYTHON")" != "$(version_of $python)" ]; then
    stop ".venv holds Python $(version_of $python) and PYTHON=$PYTHON is another; delete the folder .venv, then run the same command again."
fi
ready && exit 0

# The mark holds the number of the process that set it: is that still a set-up, or was it killed?
other=$(cat .venv/unfinished 2>/dev/null || true)
if [ -n "$other" ] && { cat "/proc/$other/cmdline" || ps -p "$other" -o command=; } 2>/dev/null | grep -q setup.sh; then
    stop "another set-up is at work in this folder (process $other); wait until it ends."
fi

if [ -e .venv/unfinished ] || ! $python -m pip --version >/dev/null 2>&1; then
    choose_python
    check_disk
    [ ! -e .venv ] || echo "Removing .venv: it is unfinished, or its Python or pip does not start"
    echo "Making .venv with Python $version (the first time takes some minutes)"
    rm -rf .venv
    mkdir .venv
    echo $$ >.venv/unfinished
    "$base_python" -m venv .venv || stop "python -m venv failed (its message stands above)."
fi

# pip unpacks gigabytes: not into a /tmp that may be small, and not for the user's account.
mkdir -p .venv/tmp
TMPDIR=$(pwd)/.venv/tmp
export TMPDIR PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
check_network
echo $$ >.venv/unfinished
rm -f .venv/ready .venv/readytest

# torch first and alone: it may come from an index of its own, and the kernels are compiled against what is installed.
if [ -n "$torch_index" ] && [ "$torch_index" != "$(cat .venv/torch-index 2>/dev/null)" ]; then
    $python -m pip uninstall --quiet --yes torch 2>/dev/null
    install --index-url "$torch_index" "$torch"
    echo "$torch_index" >.venv/torch-index
else
    install "$torch"
fi
install -e ".${extra:+[$extra]}"

rm -rf .venv/tmp .venv/probe.log
fingerprint >.venv/ready
[ -z "$extra" ] || fingerprint >".venv/ready$extra"
rm .venv/unfinished
echo "Set-up finished."

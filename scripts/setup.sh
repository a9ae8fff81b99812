#!/bin/sh
# Makes .venv and installs the course into it; `setup.sh site` adds what makes pages, `setup.sh test` what the tests need.
# Every stop is one sentence with what to do next. An interrupted set-up is never taken for a finished one:
# .venv/unfinished is there from the first step to the last, and a later call that finds it starts again.
set -eu
cd "$(dirname "$0")/.."

extra=${1:-}
python=.venv/bin/python
torch=$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
torch_index=${TORCH_INDEX_URL:-}
# The Pythons that pyproject.toml takes: "11 12 13 14" of requires-python = ">=3.11,<3.15", and the words for it.
minors=$(sed -n 's/^requires-python = ">=3\.\([0-9]*\),<3\.\([0-9]*\)"$/\1 \2/p' pyproject.toml |
    awk '{ for (i = $1; i < $2; i++) printf "%s%d", (i > $1 ? " " : ""), i }')
pythons=$(echo "$minors" | awk '{ for (i = 1; i <= NF; i++) printf "%s3.%s", (i == 1 ? "" : i < NF ? ", " : " or "), $i }')

# What another program set for its own Python: the course's packages are its own alone.
unset PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONPLATLIBDIR PYTHONOPTIMIZE PYTHONINSPECT PYTHONUSERBASE

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

# With what is unusual about it: no wheels are published for PyPy, for 32 bits or without the GIL.
version_of() {
    "$1" -c '
import sys, sysconfig
kind = "" if sys.implementation.name == "cpython" else " of " + sys.implementation.name
kind += "" if sys.maxsize > 2**32 else " of 32 bits"
kind += " without the GIL" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
print("%d.%d" % sys.version_info[:2] + kind)' 2>/dev/null
}

taken() {
    for minor in $minors; do [ "$1" != "3.$minor" ] || return 0; done
    return 1
}

# Sets base_python and version. A name is not enough: pyenv leaves commands on the PATH that only print an error.
choose_python() {
    if [ -n "${PYTHON:-}" ]; then
        version=$(version_of "$PYTHON") || stop "PYTHON=$PYTHON does not start; name a Python $pythons, for example PYTHON=/usr/bin/python3.12."
        taken "$version" || stop "PYTHON=$PYTHON is Python $version, and the course needs $pythons; name one of those."
        base_python=$PYTHON
    else
        found=""
        for base_python in python3 $(for minor in $minors; do echo "python3.$minor"; done) ""; do
            version=$(version_of "$base_python") || continue
            ! taken "$version" || break
            found=" ($base_python is Python $version)"
        done
        [ -n "$base_python" ] || stop "no Python $pythons was found$found. Install one (Debian, Ubuntu: sudo apt install python3.11-venv; macOS: brew install python@3.12), or name one: make lab PYTHON=/path/to/python3.12"
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

# pip takes the place for packages from its settings too. Empty values in .venv/pip.conf, which pip reads after the
# user's, take them back; addresses, proxies and certificates stay. A file that PIP_CONFIG_FILE names would be read
# later still: .venv/pip.conf then holds the rest of it, and takes its place.
own_place() {
    names="prefix target root user dry-run no-deps python platform abi implementation python-version constraint"
    names="$names requirement ignore-installed no-build-isolation require-hashes"
    for name in $names; do unset "PIP_$(echo "$name" | tr a-z- A-Z_)"; done
    export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
    [ "${PIP_CONFIG_FILE:-}" != /dev/null ] || return 0 # no settings at all
    $python -c '
import configparser, os, sys
settings = configparser.RawConfigParser()
settings.read(os.environ.get("PIP_CONFIG_FILE") or [], encoding="utf-8")
for section in {"global", "install", "download", *settings.sections()}:
    if not settings.has_section(section):
        settings.add_section(section)
    for name in list(settings[section]):
        if name.lower().replace("_", "-") in sys.argv[2:]:
            settings.remove_option(section, name)
    for name in sys.argv[2:]:
        settings.set(section, name, "")
with open(sys.argv[1], "w", encoding="utf-8") as file:
    settings.write(file)' .venv/pip.conf $names || stop "PIP_CONFIG_FILE=${PIP_CONFIG_FILE:-} cannot be read (the message stands above); put it right, or unset it."
    if [ -n "${PIP_CONFIG_FILE:-}" ]; then
        PIP_CONFIG_FILE=$(pwd)/.venv/pip.conf
        export PIP_CONFIG_FILE
    fi
}

# Whether torch starts, and is the one in .venv.
check_torch() {
    said=$($python -c 'import sys, torch; assert torch.__file__.startswith(sys.prefix), torch.__file__' 2>&1) ||
        stop "torch is installed and cannot be imported from .venv ($(echo "$said" | tail -n 1)); delete the folder .venv, then run the same command again (a cuDNN on LD_LIBRARY_PATH can be the reason: unset LD_LIBRARY_PATH)."
}

# One small download with short timeouts tells in seconds what pip's own retries take minutes to say.
check_network() {
    $python -m pip download --quiet --no-deps --retries 1 --timeout 15 --dest .venv/tmp packaging >.venv/probe.log 2>&1 ||
        stop "pip reaches no package index; connect to the network (behind a proxy: set HTTPS_PROXY), then run the same command again. pip's words: $(pwd)/.venv/probe.log"
}

install() {
    echo "Installing $*"
    $python -m pip install --no-compile "$@" ||
        stop "pip could not install this (its message stands above); run the same command again, finished downloads are kept."
}

# Two set-ups at once would take each other's .venv away. The lock on this script is held by this process and by what
# it starts, and goes with the last of them, however it ends. (A Mac has no flock, so a Python sets it.)
alone() {
    exec 9>>scripts/setup.sh
    "$1" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(1)
except OSError:  # a file system without locks
    pass' || stop "another set-up is at work in this folder; wait until it ends, then run the same command again."
}

# --- The set-up -------------------------------------------------------------------------------------------------------

if [ -n "${PYTHON:-}" ] && [ -x $python ] && [ "$(version_of "$PYTHON")" != "$(version_of $python)" ]; then
    stop ".venv holds Python $(version_of $python) and PYTHON=$PYTHON is another; delete the folder .venv, then run the same command again."
fi
ready && exit 0
[ -w . ] && [ -w scripts/setup.sh ] || stop "you may not write in $(pwd), where .venv would be made; make a clone of your own."

if [ -e .venv/unfinished ] || ! $python -m pip --version >/dev/null 2>&1; then
    choose_python
    alone "$base_python"
    ! ready || exit 0 # the other set-up has just ended
    check_disk
    [ ! -e .venv ] || echo "Removing .venv: it is unfinished, or its Python or pip does not start"
    echo "Making .venv with Python $version (the first time takes some minutes)"
    rm -rf .venv
    mkdir .venv
    : >.venv/unfinished
    "$base_python" -m venv .venv || stop "python -m venv failed (its message stands above)."
else
    alone $python
fi

# pip unpacks gigabytes: not into a /tmp that may be small, and not for the user's account.
mkdir -p .venv/tmp
TMPDIR=$(pwd)/.venv/tmp
export TMPDIR
own_place
check_network
: >.venv/unfinished
rm -f .venv/ready*

# torch first and alone: it may come from an index of its own, and the kernels are compiled against what is installed.
if [ -n "$torch_index" ] && [ "$torch_index" != "$(cat .venv/torch-index 2>/dev/null)" ]; then
    $python -m pip uninstall --quiet --yes torch 2>/dev/null
    install --index-url "$torch_index" "$torch"
    echo "$torch_index" >.venv/torch-index
else
    install "$torch"
fi
# Bytecode is made beside pip, of what is there, and then of the rest on all cores. Packages' own tests are never
# imported; some files are for other Pythons and do not compile.
compile="$python -m compileall -qq -x /tests/ .venv/lib"
$compile &
trap 'kill $! 2>/dev/null || :' EXIT
trap 'exit 130' INT
install -e ".${extra:+[$extra]}"
wait
trap - EXIT
$compile -j 0 || :
check_torch

rm -rf .venv/tmp .venv/probe.log
fingerprint >.venv/ready
[ -z "$extra" ] || fingerprint >".venv/ready$extra"
[ "$extra" != test ] || fingerprint >.venv/readysite # it is a part of what the tests need
rm .venv/unfinished
echo "Set-up finished."

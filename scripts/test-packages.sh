#!/bin/sh
# The browser test drives Debian's chromium, and grading runs in Debian's bubblewrap. Root on Debian gets both here;
# everyone else is told, and the test skips with its reason. On CI (CI=true) what is missing is a failure: the test
# itself says so.
set -eu

# The test of 8-bit experts takes torchao from a folder of its own, so that no other test imports it.
torchao=$(sed -n 's/^eight-bit = \["\(.*\)"\]/\1/p' pyproject.toml)
[ -e .venv/eight-bit/torchao ] || .venv/bin/python -m pip install --quiet --no-deps --target .venv/eight-bit "$torchao" ||
    echo "pip could not install $torchao, so the test of 8-bit experts will be skipped." >&2

command -v chromium >/dev/null && command -v bwrap >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && grep -q '^ID=debian' /etc/os-release 2>/dev/null; then
    echo "Installing chromium and fonts for the browser test, bubblewrap for the test of grading"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core bubblewrap >/dev/null ||
        echo "apt-get could not install chromium and bubblewrap (its message stands above)." >&2
else
    echo "chromium or bubblewrap is not installed, so a test will be skipped (Debian: sudo apt install chromium bubblewrap)."
fi

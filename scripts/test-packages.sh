#!/bin/sh
# The browser test drives Debian's chromium, and grading runs in Debian's bubblewrap. Root on Debian gets both here;
# everyone else is told, and the test skips with its reason. On CI (CI=true) what is missing is a failure: the test
# itself says so.
set -eu

command -v chromium >/dev/null && command -v bwrap >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && grep -q '^ID=debian' /etc/os-release 2>/dev/null; then
    echo "Installing chromium and fonts for the browser test, bubblewrap for the test of grading"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core bubblewrap >/dev/null ||
        echo "apt-get could not install chromium and bubblewrap (its message stands above)." >&2
else
    echo "chromium or bubblewrap is not installed, so a test will be skipped (Debian: sudo apt install chromium bubblewrap)."
fi

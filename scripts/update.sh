#!/bin/sh
# Brings the newest labs and never touches a student's work: a lab that was changed here and in the update is first
# copied to labs/my-<lab>-<time>.ipynb.
set -eu
cd "$(dirname "$0")/.."

stop() {
    printf '\nUpdate stopped, nothing was changed: %s\n' "$*" >&2
    exit 1
}

git fetch --quiet || stop "git reaches no remote (its message stands above); connect to the network and try again."
new=$(git rev-parse --verify --quiet '@{upstream}') || stop "this branch follows no remote branch; git branch -vv shows which one it could."
git merge-base --is-ancestor HEAD "$new" || stop "this branch has commits of its own; bring both together with: git pull --rebase"

theirs=$(git diff --name-only HEAD "$new")
both=$(git diff --name-only HEAD | while read -r file; do echo "$theirs" | grep -Fx "$file" || true; done)
for file in $both; do
    case $file in
    labs/*.ipynb) ;;
    *) stop "$file was changed here and in the update; put your change aside (git stash, or a copy), then try again." ;;
    esac
done

now=$(date +%Y%m%d-%H%M%S)
for file in $both; do
    mine=labs/my-$(basename "$file" .ipynb)-$now.ipynb
    cp "$file" "$mine"
    git checkout --quiet HEAD -- "$file"
    echo "Your $file is kept as $mine"
done
git merge --ff-only --quiet "$new"
echo "The labs are up to date: $(git log -1 --format='%h %s')"

#!/bin/sh
# Brings the newest labs and never touches a student's work: a lab that was changed here and in the update is first
# copied to labs/my-<lab>-<time>.ipynb. All or nothing: it decides before the first move, and undoes its moves where
# git still refuses.
set -eu
cd "$(dirname "$0")/.."
# Of another repository, as git sets them for its hooks.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE

stop() {
    printf '\nUpdate stopped, nothing was changed: %s\n' "$*" >&2
    exit 1
}

# --- Is this a clone that can be updated? -----------------------------------------------------------------------------

command -v git >/dev/null || stop "git is not installed; install it (Debian, Ubuntu: sudo apt install git), then try again."
here=$(pwd -P)
top=$(LC_ALL=C git rev-parse --show-toplevel 2>&1) || case $top in
*"dubious ownership"*) stop "this clone belongs to another user; make a clone of your own, or trust this one with: git config --global --add safe.directory '$here'" ;;
*) top="" ;;
esac
[ "$(cd "${top:-/}" && pwd -P)" = "$here" ] ||
    stop "this folder is not a clone (it came as a ZIP or as a copy), so it cannot be updated; clone the course with git beside it, and copy your labs over."
[ -w "$(git rev-parse --git-dir)" ] || stop "you may not write in this clone; make a clone of your own."
[ -z "$(git ls-files --unmerged)" ] || stop "a merge was begun here and not ended; end it, or undo it with: git merge --abort"
[ -n "$(git remote)" ] || stop "this repository has no remote; clone the course with git, and copy your labs over."
git symbolic-ref --quiet HEAD >/dev/null || stop "no branch is checked out; go back to one, for example with: git switch main"
git fetch --quiet || stop "git reaches no remote (its message stands above); connect to the network and try again."
new=$(git rev-parse --verify --quiet '@{upstream}') || stop "this branch follows no remote branch; git branch -vv shows which one it could."
git merge-base --is-ancestor HEAD "$new" || stop "this branch has commits of its own; bring both together with: git pull --rebase"

# Two updates at once would take each other's moves for the student's. (A Mac has no flock.)
exec 9>"$(git rev-parse --git-dir)/update.lock"
! command -v flock >/dev/null || flock -n 9 || stop "another update is at work in this folder; wait until it ends."

# --- Does anything of the student's stand in its way? -----------------------------------------------------------------

# Names as they are, one a line; a renamed file counts as one that goes and one that comes.
names() {
    git -c core.quotePath=false diff --name-only --no-renames "$@"
}

theirs=$(names HEAD "$new")
both=$(names HEAD | while IFS= read -r file; do printf '%s\n' "$theirs" | grep -Fx -e "$file" || true; done)

# What the update adds must not lie here already, ignored or not, and no file may lie where it needs a folder.
in_the_way=$(names --diff-filter=A HEAD "$new" | while IFS= read -r file; do
    part=$file
    while [ "$part" != . ]; do
        if [ -L "$part" ] || { [ -e "$part" ] && { [ "$part" = "$file" ] || [ ! -d "$part" ]; }; }; then
            [ -n "$(git ls-tree HEAD -- "$part")" ] || printf '%s\n' "$part"
        fi
        part=$(dirname "$part")
    done
done | head -n 1)
[ -z "$in_the_way" ] || stop "$in_the_way is yours, and the update brings a file of that name; rename yours, then try again."

other=$(printf '%s\n' "$both" | while IFS= read -r file; do
    case $file in
    "" | labs/*.ipynb) ;;
    *) [ ! -e "$file" ] || printf '%s\n' "$file" ;;
    esac
done | head -n 1)
[ -z "$other" ] || stop "$other was changed here and in the update; put your change aside (git stash, or a copy), then try again."

# --- The moves --------------------------------------------------------------------------------------------------------

second=$(date +%Y%m%d-%H%M%S)
now=$second
number=1
while ls labs 2>/dev/null | grep -q -e "-$now\.ipynb\$"; do # kept by an update of the same second
    number=$((number + 1))
    now=$second-$number
done
each() { # each COMMAND: call it with every file of `both` and the name under which the student's is kept
    printf '%s\n' "$both" | while IFS= read -r file; do
        name=$(printf '%s\n' "${file#labs/}" | sed 's/\.ipynb$//; s,/,-,g')
        [ -z "$file" ] || "$1" "$file" "labs/my-$name-$now.ipynb" || exit 1
    done
}
keep() { [ ! -e "$1" ] || cp -p "$1" "$2"; }
reset() { git checkout --quiet HEAD -- "$1"; }
undo() { if [ -e "$2" ]; then mv -f "$2" "$1"; else rm -f "$1"; fi; }
drop() { rm -f "$2"; }
tell() { [ ! -e "$2" ] || echo "Your $1 is kept as $2"; }

each keep || { each drop; stop "your labs could not be copied (the message stands above)."; }
if ! { each reset && git merge --ff-only --quiet --no-overwrite-ignore "$new" 9>&-; }; then
    each undo
    stop "git could not do it (its message stands above)."
fi
each tell
echo "The labs are up to date: $(git log -1 --format='%h %s')"

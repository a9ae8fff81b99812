#!/bin/sh
# Brings the newest labs and never loses a student's work: a lab that was changed here and in the update is first
# copied to labs/my-<lab>-<time>.ipynb, and then both versions become one (scripts/merge.py). Where the student's is no
# notebook, the course's takes its place.
# All or nothing: it decides before the first move, and undoes its moves where git still refuses. Killed in between, it
# leaves each lab as it was or merged, and the next call goes on.
set -eu
cd "$(dirname "$0")/.."
# Of another repository, as git sets them for its hooks.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
export GIT_LITERAL_PATHSPECS=1 # a name with a * in it is that name

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
git merge-base --is-ancestor HEAD "$new" || stop "this branch has commits of its own; turn them into changes of your files, which stay as they are, with: git reset $(git merge-base HEAD "$new") and try again; or keep them, with: git pull --rebase"

# Two updates at once would take each other's moves for the student's. (A Mac has no flock.)
exec 9>"$(git rev-parse --git-dir)/update.lock"
! command -v flock >/dev/null || flock -n 9 || stop "another update is at work in this folder; wait until it ends."
began=$(git rev-parse --git-path update.began) # there while files move, and after an update that was killed then
[ ! -e "$began" ] || rm -f "$(git rev-parse --git-path index.lock)" labs/.merged

# --- Does anything of the student's stand in its way? -----------------------------------------------------------------

# Names as they are, one a line; a renamed file counts as one that goes and one that comes.
names() {
    git -c core.quotePath=false diff --name-only --no-renames "$@"
}

theirs=$(names HEAD "$new")
changed=$(names "$new")
# A file that is here as the update has it came with an update that was killed.
both=$(names HEAD | while IFS= read -r file; do
    ! printf '%s\n' "$theirs" | grep -Fxq -e "$file" || printf '%s\n' "$changed" | grep -Fx -e "$file" || true
done)
came() { [ -f "$1" ] && [ ! -L "$1" ] && [ "$(git hash-object -- "$1")" = "$(git rev-parse "$new:$1")" ]; }
added=$(names --diff-filter=A HEAD "$new" | while IFS= read -r file; do ! came "$file" || printf '%s\n' "$file"; done)
tracked=$(names --diff-filter=a HEAD "$new" | while IFS= read -r file; do
    printf '%s\n' "$changed" | grep -Fxq -e "$file" || printf '%s\n' "$file"
done)

# What the update adds must not lie here already, ignored or not, and no file may lie where it needs a folder.
in_the_way=$(names --diff-filter=A HEAD "$new" | while IFS= read -r file; do
    ! printf '%s\n' "$added" | grep -Fxq -e "$file" || continue
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
each() { # each COMMAND: call it with every file of `both`, the name under which the student's is kept, and the merged one
    printf '%s\n' "$both" | while IFS= read -r file; do
        name=$(printf '%s\n' "${file#labs/}" | sed 's/\.ipynb$//; s,/,-,g')
        [ -z "$file" ] || "$1" "$file" "labs/my-$name-$now.ipynb" "$work/$name" || exit 1
    done
}
keep() { [ ! -e "$1" ] || cp -p "$1" "$2"; }
merge() { # what it says is told at the end; where nothing can be merged there is no third file
    git show "HEAD:$1" >"$3.base" 2>/dev/null && git show "$new:$1" >"$3.new" 2>/dev/null && [ -f "$1" ] || return 0
    $python scripts/merge.py "$3.base" "$3.new" "$1" "$3" >"$3.said" 2>"$3.why" || rm -f "$3"
}
# A file of which git's index has the new version is up to date for git, whatever it holds.
up_to_date() { printf '%s\n' "$1" | while IFS= read -r file; do [ -z "$file" ] || git reset --quiet "$new" -- "$file"; done; }
place() {
    if [ -e "$3" ]; then
        cp "$3" labs/.merged && mv -f labs/.merged "$1" && up_to_date "$1"
    else
        git checkout --quiet HEAD -- "$1"
    fi
}
undo() { if [ -e "$2" ]; then mv -f "$2" "$1"; else rm -f "$1"; fi; }
drop() { rm -f "$2"; }
tell() {
    if [ -e "$3" ]; then
        echo "$1 has the update and your work; your version is kept as $2"
        cat "$3.said"
        echo "  (where it is open in JupyterLab: File, Reload Notebook from Disk)"
    elif [ -e "$2" ]; then
        echo "Your $1 is kept as $2"
        [ ! -s "$3.why" ] || echo "  $(tail -n 1 "$3.why")"
    fi
}

python=.venv/bin/python
[ -x $python ] || python=python3
index=$(git rev-parse --git-path index)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp "$index" "$work/.index"

each keep || { each drop; stop "your labs could not be copied (the message stands above)."; }
each merge
touch "$began"
if ! { each place && up_to_date "$added" && up_to_date "$tracked" &&
    git merge --ff-only --quiet --no-overwrite-ignore "$new" 9>&-; }; then
    each undo
    cp "$work/.index" "$index"
    rm -f "$began"
    stop "git could not do it (its message stands above)."
fi
rm -f "$began"
each tell
echo "The labs are up to date: $(git log -1 --format='%h %s')"

"""Downloads from the Hugging Face hub: pinned, one file after the other, each compared with its hash, never code.

huggingface_hub does the transfer, with its cache, locks and progress bars. What it leaves to its caller is done here:
it does not compare a file with the hash that the hub lists, gives up a file when the server stumbles, only warns where
the disk is too small, and leaves temporary files behind when it is killed.
"""

import errno
import fnmatch
import hashlib
import os
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from shared import files
from shared.errors import DiskFull, Missing
from shared.hub import store
from shared.hub.catalogue import SOURCES, Source
from shared.units import human

TRIES = 3
TOLD_FROM = 100_000_000  # bytes; a larger download is announced with its size


def fetch(name: str, split: str | None = None, size: Callable[[], int] | None = None) -> Path:
    """The folder with all files of a source; what is missing is downloaded, and if nothing is, no request is made.

    Args:
        name: of `catalogue.SOURCES`. split: of a data set, by default the one that the labs read.
        size: gives the bytes of a model, asked where a sentence says how much there is to fetch.

    Raises:
        Missing: it cannot be had now; the sentence says why and what to do.
        DiskFull: foreseen from the sizes that the hub lists, or when it happens. The cache stays usable.
    """
    source = SOURCES[name]
    split = split or next(iter(source.splits))
    if folder := store.local(name, split):
        return folder
    check_place(store.storage(source))
    if why := _unreachable():
        remedy = _remedy(name, size() if size else source.size)
        raise Missing(f"{name} is not complete on this machine and cannot be fetched now ({why}): {remedy}.")
    mark, what = store.mark(source, split), "the list of files"
    try:
        files = _listing(source, split)
        _make_room(name, source, [file for file in files if not _there(source, file)])
        resumed = mark.exists()
        checked = mark.read_text().splitlines() if resumed else []
        mark.parent.mkdir(parents=True, exist_ok=True)
        with mark.open("a") as done:
            _remove_leftovers(source)
            for file in files:
                what = file.path
                if not _there(source, file) or (resumed and file.path not in checked):
                    _download(source, file)
                done.write(f"{file.path}\n")
                done.flush()
    except Exception as problem:  # the errors of the hub's client share no base
        raise _explained(f"{what} of {name}", name, source, problem) from problem
    mark.unlink(missing_ok=True)
    return store.snapshot(source)


# ---- the transfer -----------------------------------------------------------------------------------------------


def _there(source: Source, file) -> bool:
    return (store.snapshot(source) / file.path).exists()


def _unreachable() -> str:
    """Why the hub cannot be asked, or nothing.

    One short question by its own client, so by the same proxies and certificates: in a transfer that client retries for
    most of a minute, and tells each try.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if not _is_address(constants.ENDPOINT):
        return f"HF_ENDPOINT is {constants.ENDPOINT!r}: unset it, or write an address such as https://huggingface.co"
    from huggingface_hub.utils import get_session  # which cannot be imported with a wrong address

    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and not Path(certificates).is_file():
        return f"SSL_CERT_FILE is {certificates}, and there is no such file: unset it, or name one with certificates"
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as problem:  # the client's, and of what it wraps: they share no base
        causes = _causes(problem)
        if untrusted := next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None):
            return _untrusted(constants.ENDPOINT, untrusted)
        reason = str(causes[-1]) or type(causes[-1]).__name__
        return f"{constants.ENDPOINT} does not answer{_by_proxy()}: {reason}"
    return f"a proxy wants a password{_by_proxy()}" if answer.status_code == 407 else ""


def _by_proxy() -> str:
    """Which variables say where a proxy is, in brackets, or nothing. Not what they say: a password may stand there."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    set_here = [variable for variable in os.environ if variable.upper() in names and os.environ[variable]]
    if not set_here:
        return ""
    return f" (asked by {' and '.join(set_here)}, which are to be as http://host:port, or unset)"


def _is_address(text: str) -> bool:
    """Whether a text is the address of a server: http or https, a host, perhaps a port, no spaces."""
    try:
        parts = urllib.parse.urlsplit(text)
        port_is_right = parts.port != 0  # which raises where it is no number
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port_is_right and not re.search(r"\s", text)


def _untrusted(server: str, problem: ssl.SSLError) -> str:
    """What to do where a certificate is not trusted, as part of a sentence. The hub's client reads SSL_CERT_FILE."""
    why = getattr(problem, "verify_message", "") or problem.reason or "TLS failed"
    now = os.environ.get("SSL_CERT_FILE")
    return (
        f"the certificate of {server} or of a proxy before it is not trusted, {why}: set SSL_CERT_FILE to the file "
        f"with the certificates of your network{f', it is {now} now' if now else ''}, REQUESTS_CA_BUNDLE is not read"
    )


def _listing(source: Source, split: str) -> list:
    """The files to fetch, as the hub lists them at the pinned revision: path, size, hash."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    tree = HfApi().list_repo_tree(source.repo, recursive=True, revision=source.revision, repo_type=source.kind)
    listed, patterns = [entry for entry in tree if isinstance(entry, RepoFile)], source.splits[split]
    files = [file for file in listed if any(fnmatch.fnmatch(file.path, pattern) for pattern in patterns)]
    if source.kind == "model" and not any(file.path.endswith(".safetensors") for file in files):
        raise Missing(
            f"{source.repo} has no weights as safetensors, and a pickle is never loaded: choose another model."
        )
    if source.kind == "dataset" and (gone := {*patterns} - {file.path for file in files}):
        raise Missing(
            f"{source.repo} does not list {min(gone)} at the pinned revision: update the course (`make update`)."
        )
    return files


def _download(source: Source, file) -> None:
    """Put one file into the cache with the content that the hub's listing says."""
    from huggingface_hub import hf_hub_download

    where = {"repo_id": source.repo, "repo_type": source.kind, "revision": source.revision}
    for _ in range(2):
        path = Path(_patiently(lambda: hf_hub_download(filename=file.path, **where)))
        if _hash(path, file) == (file.lfs.sha256 if file.lfs else file.blob_id):
            _to_disk(path)
            return
        blob = path.resolve()  # the file in the snapshot is a link to it
        path.unlink()
        blob.unlink(missing_ok=True)
    raise Missing(
        f"{file.path} of {source.repo} arrived twice with another content than the hub lists and was deleted: try "
        "again later, or from another network."
    )


def _to_disk(path: Path) -> None:
    """Write what memory holds of a file to the disk, then drop it.

    Where CPU and GPU share the memory, CUDA takes the page cache for used: after a large download it may not start,
    though tens of GB are available. Pages that are not on the disk yet cannot be dropped.
    """
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot be asked for it
                raise
        if hasattr(os, "posix_fadvise"):  # not on a Mac
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _hash(path: Path, file) -> str:
    """SHA-256 of a large file, git's own hash of a small one: the two that the hub lists."""
    if file.lfs:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _patiently(call: Callable):
    """The result of `call`, tried again after what tends to pass: a cut connection, a server that stumbles.

    The client itself waits where the hub asks it to (429), and says so.
    """
    for tries in range(1, TRIES + 1):
        try:
            return call()
        except Exception as problem:
            if tries == TRIES or not any(_passes(cause) for cause in _causes(problem)):
                raise
            time.sleep(tries)


def _passes(problem: BaseException) -> bool:
    response = getattr(problem, "response", None)
    if response is not None:
        return response.status_code >= 500
    return type(problem).__module__.startswith("httpx") or "Consistency check failed" in str(problem)


def _causes(problem: BaseException) -> list[BaseException]:
    """An error and what it was raised from or while: the client wraps what happened."""
    causes = [problem]
    while inner := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(inner)
    return causes


def _remove_leftovers(source: Source) -> None:
    """Delete what killed downloads left behind. A file that somebody is downloading now is locked, and stays."""
    from filelock import FileLock, Timeout

    for leftover in (store.storage(source) / "blobs").glob("*.incomplete"):
        lock = store.locks(source) / f"{leftover.name.split('.')[0]}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=0):
                leftover.unlink(missing_ok=True)
        except Timeout:
            continue


# ---- what can go wrong, in one sentence -------------------------------------------------------------------------


def check_place(folder: Path) -> None:
    """Raise Missing where nothing can be written in a folder of the hub's cache: such a place also looks too small."""
    if why := files.closed(folder):
        raise Missing(f"The folder {folder.parent} cannot be made or written in ({why}): {elsewhere()}.")


def elsewhere() -> str:
    """How the hub's cache gets another place, as the end of a sentence."""
    variable = "HF_HUB_CACHE" if "HF_HUB_CACHE" in os.environ else "HF_HOME"  # the first counts where both are set
    return f"set {variable} to a folder that you may write in"


def _make_room(name: str, source: Source, missing: list) -> None:
    """Say how large a large download is, and refuse one that does not fit on the disk."""
    need, free = sum(file.size for file in missing), files.free(store.storage(source))
    if need > free:
        raise DiskFull(too_small(name, source, f"it needs {human(need)} more and {human(free)} are free"))
    if need > TOLD_FROM:
        print(f"{name}: downloading {human(need)} in {len(missing)} files, {human(free)} of disk are free", flush=True)


def uncopied(name: str, folder: Path, problem: Exception) -> Exception | None:
    """The course's own error where the disk is why the Arrow copy of a data set could not be made in `folder`."""
    where = "set HF_DATASETS_CACHE to a folder"
    if any(getattr(cause, "errno", None) in files.FULL for cause in _causes(problem)):
        return DiskFull(
            f"The disk of {folder} is too small for the Arrow copy of {name} (it is full): make room (`make cache` "
            f"shows what the course keeps), or {where} on a larger disk."
        )
    if why := files.closed(folder):
        return Missing(f"The folder {folder} cannot be made or written in ({why}): {where} that you may write in.")
    return None


def too_small(name: str, source: Source, why: str) -> str:
    return (
        f"The disk of {store.storage(source).parent} is too small for {name} ({why}): make room (`make cache` shows "
        "what the course keeps there), or set HF_HOME to a folder on a larger disk."
    )


def _remedy(name: str, size: int) -> str:
    """How to get a source, and all that a lab reads with it, as the end of a sentence."""
    source = SOURCES[name]
    ways = [f"where there is a network, `make fetch NAME={name}` fetches {human(size)} into the cache"]
    if source.labs:
        first, *others = source.labs
        other = f" (or LAB={' or '.join(others)})" if others else ""
        ways.append(f"`make fetch LAB={first} SCALE=full`{other} all that the lab reads")
    if source.kind == "model":
        ways.append('WEIGHTS = "random" needs no download')
    return ", and ".join(ways)


def _explained(what: str, name: str, source: Source, problem: Exception) -> Exception:
    """The course's own error for what the hub's client raised."""
    from huggingface_hub import constants, errors

    if isinstance(problem, (Missing, DiskFull)):
        return problem
    page = f"{constants.ENDPOINT}/{'' if source.kind == 'model' else 'datasets/'}{source.repo}"
    causes = _causes(problem)
    if any(getattr(cause, "errno", None) in files.FULL for cause in causes):
        return DiskFull(too_small(name, source, "it is full"))
    if untrusted := next((cause for cause in causes if isinstance(cause, ssl.SSLError)), None):
        return Missing(f"{what} could not be fetched: {_untrusted(constants.ENDPOINT, untrusted)}.")
    where = next((c for c in causes if isinstance(c, OSError) and c.filename), None)
    if where and where.errno in (errno.ENOTDIR, errno.EACCES, errno.EROFS, errno.EPERM, errno.EEXIST, errno.ENOENT):
        return Missing(
            f"{what} could not be written to {where.filename} ({where.strerror}): set HF_HOME to a folder that you may "
            "write in, then try again."
        )
    if any(isinstance(cause, UnicodeEncodeError) for cause in causes):
        return Missing(f"{what} could not be fetched: HF_TOKEN is no token, it has letters beyond ASCII: unset it.")
    if any(
        isinstance(cause, ImportError) or "proxy" in str(cause).lower() for cause in causes
    ):  # socks wants a package
        return Missing(
            f"{what} could not be fetched: a proxy that is set cannot be used ({causes[-1]}): write HTTPS_PROXY and "
            "ALL_PROXY as http://host:port, or unset them."
        )
    status = next((c.response.status_code for c in causes if getattr(c, "response", None) is not None), None)
    if isinstance(problem, errors.GatedRepoError) or status == 403:
        why = f"{page} is gated: accept its terms there, then log in with `hf auth login`"
    elif isinstance(problem, errors.RepositoryNotFoundError) or status in (401, 404):
        why = f"{page} does not give the pinned revision {source.revision[:7]} to you: look whether it needs a login"
    elif status == 429:
        why = f"{constants.ENDPOINT} had too many requests from here and asks to wait: try later"
    elif status:
        why = f"{page} answers with error {status}: try later"
    else:
        why = f"the connection to {page} broke ({type(causes[-1]).__name__}): try again, finished files are kept"
    return Missing(f"{what} could not be fetched: {why}.")

"""A Hugging Face hub on localhost for tests: it answers the routes that the real clients ask, and stumbles on request.

Every file has the hash that the real hub would list, large ones (LFS) their SHA-256, small ones git's, and every
repository answers at its pinned revision only.
"""

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LFS = (".parquet", ".safetensors", ".bin")
ROUTE = re.compile(
    r"/(?P<api>api/)?(?P<kind>models/|datasets/)?(?P<repo>[^/]+/[^/]+)/(?P<what>tree|resolve)/(?P<rest>.*)"
)


class LocalHub(ThreadingHTTPServer):
    """`repos[kind, repo]` is (revision, {path: bytes}). `asked` lists (method, path, bytes sent), in order.

    `faults` maps (method, file name) to a list of answers that are used up one after the other before the right one:
    a status, (status, headers), ("cut", bytes) which closes the connection in the middle, or ("content", other bytes).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[tuple[str, str], tuple[str, dict[str, bytes]]] = {}
        self.faults: dict[tuple[str, str], list] = {}
        self.asked: list[tuple[str, str, int]] = []
        self.pause = 0.0  # seconds after each block of 64 kB: a slow network
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, name: str) -> int:
        """How many bytes of files with this name were sent."""
        return sum(size for method, path, size in self.asked if method == "GET" and path.endswith(name))

    def got(self) -> list[str]:
        """The files that were asked for with GET, without the listings."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1]
            for m, path, _ in self.asked
            if m == "GET" and "/resolve/" in path
        ]

    def handle_error(self, request, client_address):
        pass  # a client that was killed is no news


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        route = ROUTE.fullmatch(path)
        if not route:
            return self.answer(path, b"", 200 if path == "/" else 404)
        kind = (route["kind"] or "models/").rstrip("s/")
        revision, files = self.server.repos.get((kind, route["repo"]), ("", None))
        asked_revision, _, file = route["rest"].partition("/")
        if files is None:
            return self.answer(path, b"", 401, {"X-Error-Code": "RepoNotFound"})
        if asked_revision != revision:
            return self.answer(path, b"", 404, {"X-Error-Code": "RevisionNotFound"})
        if route["what"] == "tree":
            file = "tree"
        elif file not in files:
            return self.answer(path, b"", 404, {"X-Error-Code": "EntryNotFound"})
        if faults := self.server.faults.get((self.command, file.rsplit("/", 1)[-1])):
            fault = faults.pop(0)
            if isinstance(fault, int):
                return self.answer(path, b"", fault)
            if isinstance(fault[0], int):
                return self.answer(path, b"", *fault)
        else:
            fault = None
        if file == "tree":
            return self.answer(path, json.dumps([_entry(name, body) for name, body in files.items()]).encode())
        body = fault[1] if fault and fault[0] == "content" else files[file]
        entry = _entry(file, files[file])
        headers = {"ETag": f'"{entry.get("lfs", entry)["oid"]}"', "X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
        self.answer(path, body, 200, headers, cut=fault[1] if fault and fault[0] == "cut" else None)

    do_HEAD = do_GET

    def answer(self, path: str, body: bytes, status: int = 200, headers=(), cut: int | None = None):
        start = 0
        if status == 200 and (wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start, status = int(wanted[1]), 206
        part = body[start:]
        self.send_response(status)
        for key, value in {"Content-Length": str(len(part)), **dict(headers)}.items():
            self.send_header(key, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        number = len(self.server.asked)
        self.server.asked.append((self.command, path, 0))
        if self.command == "HEAD":
            return
        for at in range(0, len(part if cut is None else part[:cut]), 1 << 16):
            block = part[at : min(at + (1 << 16), len(part) if cut is None else cut)]
            self.wfile.write(block)
            self.server.asked[number] = (self.command, path, at + len(block))
            time.sleep(self.server.pause)
        if cut is not None:
            self.close_connection = True
            self.connection.close()

    def log_message(self, *args):
        pass


def _entry(name: str, body: bytes) -> dict:
    """One file as the hub's tree lists it."""
    oid = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    entry = {"type": "file", "path": name, "size": len(body), "oid": oid}
    if name.endswith(LFS):
        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
    return entry

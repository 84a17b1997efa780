"""A hub on this machine: the few routes of the Hugging Face hub that a download needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMITS = {"main": "1" * 40, "v1": "2" * 40}


class _Hub(BaseHTTPRequestHandler):
    """Has one model, `someone/dogs`, with two revisions that differ in README.md."""

    folder: Path
    served: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(self.path.split("?")[0])
        about = re.fullmatch(r"/api/models/someone/dogs(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/someone/dogs/resolve/([^/]+)/([^/]+)", path)
        if about and (commit := COMMITS.get(about[1] or "main")):
            siblings = [{"rfilename": name} for name in self._files()]
            self._send(json.dumps({"id": "someone/dogs", "sha": commit, "siblings": siblings}).encode(), {}, with_body)
        elif re.fullmatch(r"/api/models/someone/dogs/tree/(1{40}|2{40})", path):
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha256(content).hexdigest()}
                for name, content in self._files().items()
            ]
            self._send(json.dumps(files).encode(), {}, with_body)
        elif file and file[1] in {*COMMITS, *COMMITS.values()} and (self.folder / file[2]).is_file():
            commit, content = COMMITS.get(file[1], file[1]), (self.folder / file[2]).read_bytes()
            if file[2] == "README.md":
                content = f"revision {commit}".encode()
            if with_body:
                self.served.append(file[2])
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}
            self._send(content, headers, with_body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RevisionNotFound" if about or file else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _files(self) -> dict[str, bytes]:
        return {**{file.name: file.read_bytes() for file in self.folder.iterdir()}, "evil.py": b"raise SystemExit(1)"}

    def _send(self, content: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that has the model in `folder`, and the files that it has sent."""
    handler = type("Hub", (_Hub,), {"folder": folder, "served": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.served  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

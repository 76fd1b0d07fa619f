"""A stand-in for the Hugging Face hub: it answers the calls that making a repository and committing small
files take, and keeps what it was sent. The hub's own storage for large files (LFS, Xet) it has not: it asks
for every file in the commit itself."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    url: str = ""
    calls: dict[str, str] = field(default_factory=dict)
    """Method and path of each, and the token that came with it."""
    made: dict[str, Any] = field(default_factory=dict)
    """The body of the call that made the repository."""
    files: dict[str, bytes] = field(default_factory=dict)
    refuses: str = ""
    """What it says instead of taking a commit."""


@contextmanager
def hub(**settings: Any) -> Iterator[Hub]:
    """Serves until the end of the block."""
    known = Hub(**settings)

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._note()
            self._say({"error": "not found"}, 404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            self._note()
            if self.path == "/api/repos/create":
                known.made = json.loads(body)
                self._say({"url": f"{known.url}/me/{known.made['name']}"})
            elif self.path == "/api/validate-yaml":
                self._say({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                self._say({"files": [{"path": one["path"], **mode} for one in asked]})
            elif re.search("/commit/", self.path) and known.refuses:
                self._say({"error": known.refuses}, 403)
            elif re.search("/commit/", self.path):
                for line in body.decode().splitlines():
                    told = json.loads(line)
                    if told["key"] == "file":
                        value = told["value"]
                        known.files[value["path"]] = base64.b64decode(value["content"])
                commit = {
                    "commitUrl": f"{known.url}/me/x/commit/1",
                    "commitOid": "1",
                    "hookOutput": "",
                }
                self._say({"success": True, **commit})
            else:
                self._say({"error": "not found"}, 404)

        def _note(self) -> None:
            call = f"{self.command} {self.path.split('?')[0]}"
            known.calls[call] = self.headers.get("authorization", "")

        def _say(self, told: dict[str, Any], code: int = 200) -> None:
            data = json.dumps(told).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if code != 200:
                self.send_header("X-Error-Message", str(told["error"]))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    known.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

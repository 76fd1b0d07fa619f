"""An HTTP server on this machine whose answers, and faults, are scripted. Real sockets."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes] | None
"""Status, headers and body; None drops the connection. A content-length of its own among the headers,
where it is too long, makes a body that breaks off."""
Script = Callable[[int, dict[str, Any]], Answer]
"""What POST number n (from 0) gets, by n and its body."""


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # else it turns away those that come all at once


class Served:
    """A server; `answer` is the script of its path, `load` that of /load_lora_adapter."""

    def __init__(
        self,
        answer: Script,
        path: str = "/v1/chat/completions",
        models: list[dict[str, Any]] | None = None,
        load: Script | None = None,
        port: int = 0,
    ):
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.loads: list[dict[str, Any]] = []
        self.models = models if models is not None else [{"id": "wise"}]
        self.now = self.most = 0
        self.dead = False
        """It drops every connection."""
        served, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                if served.dead:
                    return self.drop()
                self.reply(200, {}, json.dumps({"data": served.models}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path == "/v1/load_lora_adapter":
                    served.loads.append(body)
                    got = (
                        load(len(served.loads) - 1, body)
                        if load
                        else (404, {}, b'{"detail":"Not Found"}')
                    )
                    assert got is not None
                    return self.reply(*got)
                assert self.path == path
                with lock:
                    n = len(served.bodies)
                    served.bodies.append(body)
                    served.times.append(time.monotonic())
                    served.keys.append(self.headers["authorization"])
                    served.now += 1
                    served.most = max(served.most, served.now)
                try:
                    got = answer(n, body)
                finally:
                    with lock:
                        served.now -= 1
                if got is None or served.dead:
                    return self.drop()
                self.reply(*got)

            def drop(self) -> None:
                self.close_connection = True
                self.connection.close()

            def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
                with contextlib.suppress(OSError):  # it may have given up waiting
                    self.send_response(status)
                    if "content-length" in headers:
                        self.close_connection = True
                    for name, value in ({"content-length": str(len(body))} | headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)

        self.server = _Threads(("127.0.0.1", port), Handler)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def texts(self) -> list[str]:
        """What was said last in each chat."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

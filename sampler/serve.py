"""A page in the browser to draw with, served to this computer alone unless told otherwise."""

from __future__ import annotations

import base64
import io
import json
import secrets
import signal
import socket
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from sampler.bundle import Bundle
from sampler.draw import Drawer
from sampler.drawing_job import Desk
from sampler.errors import SamplerError
from sampler.manifest import Manifest
from sampler.masks import mask_picture
from sampler.picture import GENERATED, SIMULATED
from sampler.request import MAX_COUNT, MAX_GUIDANCE, MAX_PROMPT, MAX_STEPS, mask_of, wishes_of
from sampler.solvers import SOLVERS

PAGE = Path(__file__).with_name("page.html")
MAX_BODY_BYTES = 8 * 2**20
TIMEOUT_S = 30
HTTP_PORT = 80
MAX_DIGITS = 12
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SAMPLER_TITLES = {"dpmsolver++": "DPM-Solver++ (2M)", "ddim": "DDIM", "unipc": "UniPC"}


def serve(bundle: Bundle, host: str, port: int) -> None:
    """Serve the page until Ctrl-C or a TERM. Raises: OSError if the port is taken."""
    server = PageServer(bundle, host, port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an unpacked bundle goes by either
    try:
        print(f"open {server.address} in a browser; Ctrl-C ends it", flush=True)
        if host not in LOOPBACK:
            print(f"note: anyone who reaches {host} can draw; there is no password", file=sys.stderr)
        server.serve_forever()
    except KeyboardInterrupt:
        server.desk.stop()
    finally:
        server.server_close()


class PageServer(ThreadingHTTPServer):
    """The page of a bundle."""

    daemon_threads = True

    def __init__(self, bundle: Bundle, host: str, port: int) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
        self.manifest = bundle.manifest
        self.desk = Desk(Drawer(bundle))
        self.port = self.server_address[1]
        shown = f"[{host}]" if ":" in host else host
        self.address = f"http://{shown}:{self.port}/"
        # A page elsewhere whose name was made to point here would send its own name (DNS rebinding).
        self.is_open = host in ("0.0.0.0", "::")
        names = {*LOOPBACK, host} if host in LOOPBACK else {host}
        shown_names = {f"[{name}]" if ":" in name else name.lower() for name in names}
        self.hosts = {f"{name}:{self.port}" for name in shown_names}
        if self.port == HTTP_PORT:  # which browsers leave out
            self.hosts |= shown_names


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = TIMEOUT_S
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if not self._is_for_us():
            return
        path = urlsplit(self.path).path
        parts = path.strip("/").split("/")
        if path == "/":
            nonce = secrets.token_urlsafe(16)
            page = PAGE.read_text(encoding="utf-8").replace("{{nonce}}", nonce)
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode(), nonce)
        elif path == "/about":
            self._send_json(HTTPStatus.OK, about_page(self.server.manifest))
        elif parts[0] == "job" and len(parts) == 2 and (job := self.server.desk.job(parts[1])):
            self._send_json(HTTPStatus.OK, job.told())
        elif parts[0] == "image" and len(parts) == 3 and (job := self.server.desk.job(parts[1])):
            number = _count(parts[2])
            if number is not None and number < len(job.images):
                self._send(HTTPStatus.OK, "image/png", job.images[number])
            else:
                self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is no such image"})
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})

    def do_POST(self) -> None:
        if not self._is_for_us():
            return
        asked = self._body()
        if asked is None:
            return
        path = urlsplit(self.path).path
        try:
            if path == "/draw":
                wishes, settings = wishes_of(asked, self.server.manifest)
                job = self.server.desk.begin(wishes, settings)
                if job is None:
                    self._send_json(HTTPStatus.CONFLICT, {"error": "another drawing is under way; wait for it"})
                else:
                    self._send_json(HTTPStatus.OK, job.told())
            elif path == "/stop":
                self.server.desk.stop()
                self._send_json(HTTPStatus.OK, {})
            elif path == "/mask":
                numbers_HW = mask_of(asked.get("mask") if isinstance(asked, dict) else None, self.server.manifest)
                if numbers_HW is None:
                    raise SamplerError("there is no mask in the request")
                picture = mask_picture(numbers_HW, self.server.manifest.palette).convert("RGB")
                self._send_json(HTTPStatus.OK, {"mask": _in_base64(picture)})
            else:
                self._send_json(HTTPStatus.NOT_FOUND, {"error": "there is no such page"})
        except SamplerError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})

    def _is_for_us(self) -> bool:
        """Return whether the request names this server and comes from its own page; else answer 403."""
        origin = self.headers.get("Origin")
        own_host = self.headers.get("Host", "").lower()
        is_known = self.server.is_open or own_host in self.server.hosts
        is_own = origin is None or origin.lower().partition("://")[2] == own_host
        if is_known and is_own and self.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
            return True
        self.close_connection = True
        self._send_json(HTTPStatus.FORBIDDEN, {"error": f"open {self.server.address} itself"})
        return False

    def _body(self) -> Any:
        """Return the JSON of a request; None after an answer that refuses it."""
        length = self.headers.get("Content-Length", "")
        refusal = None
        if self.headers.get_content_type() != "application/json":
            refusal = (HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "needed is application/json")
        elif _count(length) is None:
            refusal = (HTTPStatus.LENGTH_REQUIRED, "needed is a Content-Length")
        elif int(length) > MAX_BODY_BYTES:
            refusal = (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_BODY_BYTES >> 20} MiB are not taken")
        if refusal is None:
            try:
                asked = json.loads(self.rfile.read(int(length)))
            except (ValueError, RecursionError):
                refusal = (HTTPStatus.BAD_REQUEST, "needed is a JSON object")
            else:
                return asked if asked is not None else {}
        self.close_connection = True  # what was not read is not taken for the next request
        self._send_json(refusal[0], {"error": refusal[1]})
        return None

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes, nonce: str = "") -> None:
        own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; " if nonce else ""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header(
            "Content-Security-Policy",
            f"default-src 'none'; {own}img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'",
        )
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is for errors."""


def about_page(manifest: Manifest) -> dict[str, Any]:
    """Return what the page shows of a bundle before anything is drawn."""
    values = manifest.values
    return {
        "name": manifest.name,
        "sha256": manifest.sha256,
        "precision": values["precision"],
        "resolution": manifest.resolution,
        "warning": GENERATED,
        "simulated": SIMULATED if manifest.is_simulated else "",
        "prompts": values["prompts"],
        "palette": [vars(one) for one in manifest.palette] if manifest.has_controlnet else [],
        "sampling": values["sampling"],
        "samplers": {name: SAMPLER_TITLES[name] for name in SOLVERS},
        "limits": {"prompt": MAX_PROMPT, "count": MAX_COUNT, "steps": MAX_STEPS, "guidance": MAX_GUIDANCE},
        "training_data": values["training_data"],
    }


def _count(text: str) -> int | None:
    """Return what a text of ASCII digits says; None for any other, and for one that is longer than any number here."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def _in_base64(picture: Image.Image) -> str:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()

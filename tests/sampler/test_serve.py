"""The server of the page refuses what is not from its own page, and draws one thing at a time."""

import base64
import http.client
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.hints import CLASS_COLOURS
from sampler.bundle import open_bundle
from sampler.command import main
from sampler.draw import Settings, Wish
from sampler.serve import MAX_BODY_BYTES, PageServer
from tests.browser import Browser, running_browser

ASKED: dict[str, Any] = {
    "prompt": "simulated breast ultrasound, benign",
    "negative": "",
    "count": 2,
    "seed": 4,
    "steps": 2,
    "guidance": 1,
    "sampler": "dpmsolver++",
    "mask": None,
}


@pytest.fixture(scope="module")
def server(control_bundle: Path) -> Iterator[PageServer]:
    with open_bundle(control_bundle) as bundle:
        page = PageServer(bundle, "127.0.0.1", 0)
        thread = threading.Thread(target=page.serve_forever, daemon=True)
        thread.start()
        yield page
        page.shutdown()
        page.server_close()
        thread.join()


def request(
    server: PageServer, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    content = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, content, {"Content-Type": "application/json", **told})
    answer = connection.getresponse()
    result = answer.status, answer.headers, answer.read()
    connection.close()
    return result


def finished(server: PageServer, key: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while (state := json.loads(request(server, "GET", f"/job/{key}")[2]))["state"] == "drawing":
        assert time.monotonic() < end
        time.sleep(0.02)
    return dict(state)


def test_images_are_those_of_the_command_and_say_what_they_are(server: PageServer) -> None:
    status, _, content = request(server, "POST", "/draw", ASKED)
    assert status == 200
    state = finished(server, json.loads(content)["job"])
    assert (state["state"], state["done"], state["seeds"]) == ("done", 2, [4, 5])
    status, headers, content = request(server, "GET", f"/image/{state['job']}/1")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    expected = server.desk.drawer.draw([Wish(ASKED["prompt"], "", 5)], Settings("dpmsolver++", 2, 1, 0))[0]
    with Image.open(io.BytesIO(content)) as picture:
        assert np.array_equal(np.asarray(picture), expected)
        assert picture.info["generated"].endswith("Not for diagnosis.")
    assert request(server, "GET", f"/image/{state['job']}/2")[0] == 404


def test_the_command_serves_this_computer_alone(
    control_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bound: list[tuple[Any, ...]] = []
    monkeypatch.setattr(PageServer, "serve_forever", lambda self: bound.append(self.socket.getsockname()))
    assert main([str(control_bundle), "--serve", "--port", "0"]) == 0
    assert [address[0] for address in bound] == ["127.0.0.1"]
    assert "no password" not in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_ended_leaves_no_unpacked_bundle(
    control_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    shutil.make_archive(str(tmp_path / "bundle"), "zip", control_bundle)
    (tmp_path / "unpacked").mkdir()
    command = [sys.executable, "-m", "launch.cli", "sample", str(tmp_path / "bundle.zip"), "--serve", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "unpacked")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("open http://127.0.0.1:")
        assert list((tmp_path / "unpacked").iterdir())
        process.send_signal(number)
        assert process.wait(30) == 0
    assert list((tmp_path / "unpacked").iterdir()) == []


def test_one_unet_is_open_at_a_time_and_no_text_encoder(server: PageServer) -> None:
    mask = io.BytesIO()
    Image.fromarray(np.zeros((128, 128), np.uint8)).save(mask, "PNG")
    networks = server.desk.drawer.networks
    for painted, unet in ((base64.b64encode(mask.getvalue()).decode(), "unet_with_control"), (None, "unet")):
        asked = {**ASKED, "count": 1, "mask": painted}
        assert finished(server, json.loads(request(server, "POST", "/draw", asked)[2])["job"])["state"] == "done"
        steered = {"controlnet", "hint_embedding"} if painted else set()
        assert networks.opened() == {unet, "vae_decoder", *steered}


def test_one_drawing_at_a_time_and_it_can_be_stopped(server: PageServer) -> None:
    key = json.loads(request(server, "POST", "/draw", {**ASKED, "steps": 200, "count": 16})[2])["job"]
    status, _, content = request(server, "POST", "/draw", ASKED)
    assert status == 409
    assert b"another drawing is under way" in content
    request(server, "POST", "/stop", {})
    assert finished(server, key)["state"] == "stopped"
    assert finished(server, json.loads(request(server, "POST", "/draw", ASKED)[2])["job"])["state"] == "done"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1:1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
    ],
)
def test_other_pages_are_refused(server: PageServer, headers: dict[str, str]) -> None:
    assert request(server, "GET", "/about", **headers)[0] == 403
    assert request(server, "POST", "/draw", ASKED, **headers)[0] == 403


def test_other_bodies_are_refused(server: PageServer) -> None:
    assert request(server, "POST", "/draw", ASKED, Content_Type="text/plain")[0] == 415
    assert request(server, "POST", "/draw", b"[" * 100_000)[0] == 400
    assert request(server, "POST", "/draw", b"[]")[0] == 400
    assert request(server, "POST", "/draw", b"{}", Content_Length=str(MAX_BODY_BYTES + 1))[0] == 413
    assert request(server, "POST", "/../../etc/passwd", {})[0] == 404
    assert request(server, "GET", "/../manifest.json")[0] == 404


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 3},
        {"prompt": "x" * 2001},
        {"count": 17},
        {"count": True},
        {"steps": 1.5},
        {"seed": -1},
        {"guidance": float("nan")},
        {"sampler": "euler"},
        {"mask": "no base64"},
        {"mask": base64.b64encode(b"no PNG").decode()},
    ],
)
def test_a_wrong_wish_is_one_line(server: PageServer, change: dict[str, Any]) -> None:
    status, _, content = request(server, "POST", "/draw", {**ASKED, **change})
    assert status == 400
    assert "\n" not in json.loads(content)["error"]


def test_the_page_allows_nothing_from_elsewhere(server: PageServer) -> None:
    status, headers, content = request(server, "GET", "/")
    policy = headers["Content-Security-Policy"]
    assert status == 200
    assert policy.startswith("default-src 'none'; script-src 'nonce-")
    assert policy.split("'nonce-")[1].split("'")[0].encode() in content
    assert b"{{" not in content
    assert request(server, "GET", "/")[1]["Content-Security-Policy"] != policy, "a nonce is used once"


def levels_shown(tab: Browser) -> np.ndarray:
    """Return the pixels of the first image that the page shows, uint8 [128, 128, 3]."""
    levels = tab.evaluate(
        "(() => { const image = document.querySelector('.tile img'), canvas = document.createElement('canvas');"
        " canvas.width = canvas.height = 128; const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);"
        " return [...context.getImageData(0, 0, 128, 128).data] })()"
    )
    return np.array(levels, np.uint8).reshape(128, 128, 4)[..., :3]


def drawn(server: PageServer, numbers_HW: np.ndarray | None) -> np.ndarray:
    """Return the image that the page asked for, drawn directly."""
    guidance = server.manifest.values["sampling"]["guidance"]
    wish = Wish(ASKED["prompt"], "", 4, numbers_HW)
    return np.asarray(server.desk.drawer.draw([wish], Settings("dpmsolver++", 2, guidance, 0))[0])


@pytest.mark.slow
def test_the_page_in_a_browser(server: PageServer, tmp_path: Path) -> None:
    with running_browser(tmp_path) as tab:
        tab.open(server.address)
        tab.wait_until("document.body.dataset.ready")
        warning = tab.evaluate("document.querySelector('#banner').innerText")
        assert "Generated images. Not for diagnosis." in warning
        assert "simulated images only" in warning
        data = tab.evaluate("document.querySelector('#data').innerText")
        assert data == "sim: 200 simulated images\nApache-2.0"
        offered = tab.evaluate("[...document.querySelectorAll('#classes button')].map(button => button.innerText)")
        assert offered == ["lesion", "left ventricle"], "what no mask of the training had is not offered"
        # an ellipse of the second class, painted and taken back and painted again
        x, y, width = tab.evaluate("(() => { const b = pad.getBoundingClientRect(); return [b.x, b.y, b.width] })()")
        tab.evaluate(
            "document.querySelector('[data-tool=ellipse]').click();"
            "document.querySelector('#classes').children[1].click()"
        )
        corners = [(x + share * width, y + share * width) for share in (0.25, 0.5, 0.75)]
        tab.drag(corners)
        painted = tab.evaluate("numbers.filter(number => number === 2).length")
        assert painted == pytest.approx(np.pi / 4 * 64 * 64, rel=0.05)
        tab.evaluate("document.querySelector('#undo').click()")
        assert tab.evaluate("numbers.every(number => number === 0)")
        tab.drag(corners)
        # a mask is loaded as it was saved
        assert tab.evaluate(
            "(async () => { const saved = maskData(); return (await ask('/mask', {mask: saved})).mask.length > 0 })()"
        )
        tab.evaluate("steps.value = 2; count.value = 2; seed.value = 4")
        tab.press("Enter", ctrl=True)
        tab.wait_until("shown.length === 2 && !job && document.querySelectorAll('.tile img').length === 2")
        assert tab.evaluate("document.querySelector('.tile img').naturalWidth") == 128
        assert tab.evaluate("document.querySelector('#error').textContent") == ""
        # what was painted is what steered the image, and only the switch says whether it counts
        numbers = np.array(tab.evaluate("[...numbers]"), np.uint8).reshape(128, 128)
        assert np.array_equal(levels_shown(tab), drawn(server, numbers))
        # a mask that is loaded through the page's own field replaces what was painted
        other = np.zeros((128, 128), np.uint8)
        other[10:60, 20:90] = 1
        Image.fromarray(np.array(CLASS_COLOURS, np.uint8)[other]).save(tmp_path / "mask.png")
        field = tab.call("DOM.querySelector", nodeId=tab.call("DOM.getDocument")["root"]["nodeId"], selector="#file")
        tab.call("DOM.setFileInputFiles", nodeId=field["nodeId"], files=[str(tmp_path / "mask.png")])
        tab.wait_until("numbers.some(number => number === 1)")
        assert np.array_equal(np.array(tab.evaluate("[...numbers]"), np.uint8).reshape(128, 128), other)
        assert tab.evaluate("use.checked")
        tab.evaluate("use.click(); count.value = 1")
        tab.evaluate("document.querySelector('#draw').click()")
        tab.wait_until("shown.length === 3 && !job")
        assert np.array_equal(levels_shown(tab), drawn(server, None))
        tab.evaluate("document.querySelectorAll('.run')[1].querySelector('.tile button').click()")
        assert tab.evaluate("document.querySelector('#dialog').open")
        assert "seed 4" in tab.evaluate("told.textContent")
        tab.press("ArrowRight")
        assert "seed 5" in tab.evaluate("told.textContent")
        # what is wrong is said
        tab.evaluate(
            "document.querySelector('#dialog').close(); count.value = 99;"
            "document.querySelector('#form').noValidate = true"
        )
        tab.evaluate("document.querySelector('#draw').click()")
        tab.wait_until("document.querySelector('#error').textContent.includes('count must be')")
        for size in ((1280, 800), (820, 1180)):
            tab.resize(*size)
            tab.open(server.address)
            tab.wait_until("document.body.dataset.ready")
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
            fields = "[...document.querySelectorAll('input, select, textarea')]"
            assert tab.evaluate(f"{fields}.filter(e => !e.labels.length && !e.ariaLabel).length") == 0, (
                "every field has a label"
            )
        assert [one for one in tab.complaints() if "400" not in one] == []
        own = (server.address, "blob:" + server.address, "data:")
        assert [address for address in tab.requests() if not address.startswith(own)] == []

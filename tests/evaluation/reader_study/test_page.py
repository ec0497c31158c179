"""The page of a reader study: what is in it and what must not be, and a whole study in a real browser."""

import base64
import io
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from evaluation.reader_study.answers import read_answers
from evaluation.reader_study.key import KeyRow, read_key
from evaluation.reader_study.study import ShownImage, png, write_study
from tests.browser import Browser, running_browser

NUM = 4


def shown_images() -> list[ShownImage]:
    random = np.random.default_rng(0)
    return [
        ShownImage(
            png(random.integers(0, 256, (16, 16), np.uint8)),
            "generated" if place % 2 else "real",
            *("secret-database", "secret-label", f"secret-database/Jane-Doe-{place}"),
        )
        for place in range(2 * NUM)
    ]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study", shown_images(), np.random.default_rng(1), simulated="all")


def key_of(page: Path) -> list[KeyRow]:
    return read_key(page.parent / "key.csv")


def content_of(page: Path) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    content: dict[str, object] = json.loads(found[1])
    return content


def test_every_image_is_there_once_and_nothing_tells_which_is_which(page: Path) -> None:
    text, key, content = page.read_text(encoding="utf-8"), key_of(page), content_of(page)
    assert content["study"] == key[0].study
    images = content["images"]
    assert isinstance(images, list)
    assert [set(image) for image in images] == [{"id", "source"}] * len(key)
    assert [image["id"] for image in images] == [row.image for row in key]
    sources = {row.source: row for row in key}
    expected = {image.source: image for image in shown_images()}
    assert sources.keys() == expected.keys()
    for image, row in zip(images, key, strict=True):
        assert text.count(row.image) == 1
        assert text.count(image["source"]) == 1
        start = "data:image/png;base64,"
        assert image["source"].startswith(start)
        with Image.open(io.BytesIO(base64.b64decode(image["source"].removeprefix(start)))) as picture:
            assert (picture.mode, picture.size, picture.info) == ("L", (16, 16), {})
        assert base64.b64decode(image["source"].removeprefix(start)) == expected[row.source].png
        assert row.kind == expected[row.source].kind
    for secret in ("secret", "Jane", "Doe", "key.csv", str(page.parent)):
        assert secret not in text
    # Neither the ids' order nor the place in the page tells: the kinds are not sorted, nor do they take turns.
    for kinds in ([row.kind for row in key], [row.kind for row in sorted(key, key=lambda row: row.image)]):
        assert len({*pairwise(kinds)}) > 2
    assert all(re.fullmatch("[0-9a-f]{8}", row.image) for row in key)


def test_nothing_comes_from_elsewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]+\.|@import|<link|<iframe|\bsrcset=", text)
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert policy is not None
    directives = {line.split()[0]: line.split()[1:] for line in policy[1].split(";")}
    assert directives["default-src"] == ["'none'"]
    assert directives["img-src"] == ["data:"]
    assert all(source.startswith("'sha256-") for name in ("style-src", "script-src") for source in directives[name])
    # Nothing before it: what stands before a policy is not bound by it.
    assert text.index("<style") > policy.end()
    assert text.index("<script") > policy.end()


def test_a_page_says_that_its_data_are_simulated_only_where_they_are(tmp_path: Path, page: Path) -> None:
    assert "simulator" in page.read_text(encoding="utf-8")
    assert "some of the images that it calls real" not in " ".join(page.read_text(encoding="utf-8").split())
    some = write_study(tmp_path / "some", shown_images(), np.random.default_rng(1), simulated="some")
    assert "some of the images that it calls real" in " ".join(some.read_text(encoding="utf-8").split())
    other = write_study(tmp_path / "other", shown_images(), np.random.default_rng(1))
    assert "simula" not in other.read_text(encoding="utf-8")


def test_a_key_is_not_replaced_by_that_of_another_study(page: Path) -> None:
    before = [path.read_bytes() for path in sorted(page.parent.iterdir())]
    write_study(page.parent, shown_images(), np.random.default_rng(1), simulated="all")
    assert [path.read_bytes() for path in sorted(page.parent.iterdir())] == before
    with pytest.raises(DataError, match=r"key\.csv is the key of study [0-9a-f]{8}, .*: move .*study away to make"):
        write_study(page.parent, shown_images(), np.random.default_rng(2), simulated="all")
    assert [path.read_bytes() for path in sorted(page.parent.iterdir())] == before


def test_all_images_are_written_alike() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    with Image.open(io.BytesIO(png(levels))) as picture:
        np.testing.assert_array_equal(np.asarray(picture), levels)
    # Signature, header, data, end: no time, no text, no colour profile.
    assert re.findall(b"IHDR|IDAT|IEND|tEXt|zTXt|iTXt|tIME|gAMA|iCCP|pHYs|eXIf", png(levels)) == [
        *(b"IHDR", b"IDAT", b"IEND")
    ]


def begin(browser: Browser, page: Path, reader: str) -> None:
    browser.open(page.as_uri())
    browser.evaluate("document.getElementById('reader').select()")
    browser.type(reader)
    browser.press("Enter")


def shown(browser: Browser) -> str:
    """The id of the image that is seen, by its pixels' address; '' at the end."""
    assert browser.evaluate(
        "document.getElementById('reading').hidden || document.getElementById('image').decode()"
    ) in (*(None, True),)
    return str(
        browser.evaluate(
            "document.getElementById('reading').hidden ? '' :"
            " content.images.find((image) => image.source === document.getElementById('image').src).id"
        )
    )


def text_of(browser: Browser, id_: str) -> str:
    return str(browser.evaluate(f"document.getElementById('{id_}').textContent"))


def downloaded(browser: Browser, folder: Path) -> Path:
    name = browser.wait_for("Browser.downloadWillBegin")["params"]["suggestedFilename"]
    while browser.wait_for("Browser.downloadProgress")["params"]["state"] != "completed":
        pass
    return folder / "downloads" / name


def test_a_whole_study_by_keys(page: Path, tmp_path: Path) -> None:
    key = key_of(page)
    with running_browser(tmp_path) as browser:
        browser.open(page.as_uri())
        browser.press("Enter")
        assert not browser.evaluate("document.getElementById('start').hidden"), "a study began without a reader"
        begin(browser, page, "Dr. Ä, 1")
        seen = [shown(browser)]
        assert text_of(browser, "count") == "Image 1 of 8"
        browser.press("6")
        seen.append(shown(browser))
        browser.press("g")
        seen.append(shown(browser))
        browser.press("r")
        # The third answer is changed, and commented; a letter in the comment answers nothing.
        browser.press("Backspace")
        assert shown(browser) == seen[2]
        assert browser.evaluate("document.querySelector('[aria-pressed=true]').dataset.confidence") == "5"
        browser.press("c")
        browser.type('said "r, g"\t1')
        browser.press("Enter")
        browser.press("1")
        # Arrows move along the scale, here to the fourth step, the second, and the first.
        seen.append(shown(browser))
        browser.press("Enter")
        assert shown(browser) == seen[3], "Enter answered before anything was chosen"
        for key_name in ("ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowLeft", "Enter"):
            browser.press(key_name)
        # The browser is closed and opened again: the page goes on where it was.
        seen.append(shown(browser))
        begin(browser, page, "Dr. Ä, 1")
        assert shown(browser) == seen[4]
        assert text_of(browser, "count") == "Image 5 of 8"
        for place in range(4, 8):
            if place > 4:
                seen.append(shown(browser))
            browser.press("+")
            assert text_of(browser, "zoom") == "1.3 \N{MULTIPLICATION SIGN}"
            browser.press(str(place - 1))
        assert shown(browser) == ""
        assert browser.evaluate("document.activeElement.id") == "download"
        browser.press("Enter")
        path = downloaded(browser, tmp_path)
        assert path.name == f"answers-{key[0].study}-Dr-Ä-1.csv"
        # Another reader has an order of his own.
        browser.click("#other")
        assert not browser.evaluate("document.getElementById('resume').hidden")
        begin(browser, page, "B")
        others = []
        while image := shown(browser):
            others.append(image)
            browser.press("3")
        assert browser.complaints() == []
        assert set(browser.requests()) == {page.as_uri()}
    assert Counter(seen) == Counter(others) == Counter(row.image for row in key)
    assert seen != others
    assert [row.image for row in key] not in (seen, others)
    answers = read_answers(path, key)
    assert answers.reader == "Dr. Ä, 1"
    by_image = dict(zip([row.image for row in key], answers.confidence_N.tolist(), strict=True))
    assert [by_image[image] for image in seen] == [6, 2, 1, 1, 3, 4, 5, 6]
    assert answers.seconds_N.max() < 60
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[1].startswith(f'{key[0].study},"Dr. Ä, 1",,1,{seen[0]},real,6,')
    assert lines[3].endswith(',"said ""r, g"" 1"')


def test_a_click_zooms_to_where_it_was(page: Path, tmp_path: Path) -> None:
    with running_browser(tmp_path) as browser:
        begin(browser, page, "A")
        shown(browser)

        def box() -> list[float]:
            found: list[float] = browser.evaluate(
                "(({x, y, width, height}) => [x, y, width, height])"
                "(document.getElementById('image').getBoundingClientRect())"
            )
            return found

        whole = box()
        # At 1280 by 800 the image is large, and nothing of the page lies outside of the window.
        assert min(whole[2:]) >= 600
        assert browser.evaluate("[document.body.scrollWidth, document.body.scrollHeight]") == [1280, 800]
        browser.click("#viewer")
        assert box()[2] == pytest.approx(2.5 * whole[2])
        browser.click("#viewer")
        assert box() == pytest.approx(whole)
        browser.click("[data-confidence='2']")
        assert text_of(browser, "count") == "Image 2 of 8"

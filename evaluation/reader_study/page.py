"""The page of a reader study: one HTML file that needs no network, holds no patient's data and not the key."""

import base64
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal

from data.durable import replacing

# How many of the real images come from a program, which the page then says.
Simulated = Literal["none", "some", "all"]
HERE = Path(__file__).parent
# Of an answer's confidence, 1 to 6; the first three say generated. The answers' CSV has their numbers.
SCALE = (
    "surely generated",
    "probably generated",
    "rather generated",
    "rather real",
    "probably real",
    "surely real",
)
NUM_GENERATED = 3
COLUMNS = ("study", "reader", "years", "order", "image", "answer", "confidence", "seconds", "comment")


def write_page(path: Path, study: str, images: Sequence[tuple[str, bytes]], *, simulated: Simulated = "none") -> None:
    """Replace the HTML file at `path`. images: id and PNG file of each, in an order that tells nothing.

    Its own style and script are all that its content security policy lets run; it may load and send nothing.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    html = environment.from_string((HERE / "page.html.jinja").read_text(encoding="utf-8")).render(
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        simulated=simulated,
        scale=SCALE,
        num_generated=NUM_GENERATED,
        num_images=len(images),
        content={
            "study": study,
            "columns": COLUMNS,
            "scale": SCALE,
            "num_generated": NUM_GENERATED,
            "images": [
                {"id": name, "source": f"data:image/png;base64,{base64.b64encode(png).decode()}"}
                for name, png in images
            ],
        },
    )
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")


def _csp_hash(text: str) -> str:
    """Return the source expression that lets just this inline text run (W3C Content Security Policy 3, 2.3.1)."""
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"

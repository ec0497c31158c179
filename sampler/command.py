"""The command line of the sampler: `sonoshard sample BUNDLE`, and `python sample.py` inside a bundle."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sampler.errors import SamplerError

if TYPE_CHECKING:
    from sampler.bundle import Bundle

EXIT_OK, EXIT_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130
SAMPLERS = ("dpmsolver++", "ddim", "unipc")
PORT = 8765


def main(arguments: Sequence[str], program: str = "sonoshard sample", bundle: Path | None = None) -> int:
    """Run the command and return its exit code: 0, 1 (failed), 2 (the user can mend it), 130 (interrupted).

    bundle: what is drawn from where the command line names none.
    """
    try:
        return _run(_parser(program, bundle).parse_args(arguments))
    except SystemExit as ended:  # argparse, after help or a usage error
        return int(ended.code or 0)
    except SamplerError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except ImportError as error:
        print(f"{program}: {error}; needed: pip install onnxruntime numpy pillow tokenizers", file=sys.stderr)
        return EXIT_FAILED
    except (OSError, MemoryError) as error:
        print(f"{program}: {error or 'out of memory'}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        note = "interrupted; what is finished is kept, run the same command again to go on"
        print(f"\n{program}: {note}", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser(program: str, bundle: Path | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Draw generated images from an exported bundle, on this computer, without network or torch. "
        "Generated images are not for diagnosis.",
        allow_abbrev=False,
    )
    if bundle is None:
        parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder or .zip that was exported")
    else:
        parser.add_argument(
            "bundle", type=Path, metavar="BUNDLE", nargs="?", default=bundle, help="folder or .zip; default: this one"
        )
    what = parser.add_argument_group("what to draw")
    what.add_argument("--prompt", action="append", metavar="TEXT", help="what to show; may be given several times")
    what.add_argument("--negative", default="", metavar="TEXT", help="what to keep away from")
    what.add_argument(
        "--mask",
        type=Path,
        metavar="PNG",
        help="where classes lie: a PNG, or a folder of them in turn; in DATABASE/LABEL/ within it: for that class",
    )
    what.add_argument("--mask-class", metavar="NAME", help="masks are black and white, and white is this class")
    what.add_argument("-n", "--count", type=int, metavar="N", help="images of each prompt; default: 1")
    what.add_argument("--per-class", type=int, metavar="N", help="N images of each class that it was trained on")
    how = parser.add_argument_group("how to draw it (defaults: the bundle's)")
    how.add_argument("--seed", type=int, default=0, help="of the first image; the next ones count up; default: 0")
    how.add_argument("--steps", type=int, metavar="N", help="evaluations of the network for an image")
    how.add_argument("--guidance", type=float, metavar="X", help="how strongly the prompt counts, from 1 (plainly)")
    how.add_argument("--guidance-rescale", type=float, metavar="X", help="0 to 1: keeps guidance from brightening")
    how.add_argument("--sampler", choices=SAMPLERS, help="solver")
    how.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time; default: 1, least memory")
    parser.add_argument("--out", type=Path, default=Path("samples"), metavar="DIR", help="folder; default: samples")
    other = parser.add_argument_group("instead of drawing").add_mutually_exclusive_group()
    other.add_argument("--about", action="store_true", help="say what is in the bundle: prompts, classes, licences")
    other.add_argument("--selftest", action="store_true", help="compare with what torch gave; 1 if it differs")
    other.add_argument("--serve", action="store_true", help="show a page in the browser to draw with")
    parser.add_argument("--port", type=int, default=PORT, help=f"of --serve; 0: any that is free; default: {PORT}")
    parser.add_argument("--host", default="127.0.0.1", help="of --serve; default: this computer alone")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    _refuse_settings(arguments)
    from sampler.bundle import open_bundle

    with open_bundle(arguments.bundle) as bundle:
        if arguments.about:
            from sampler.about import about

            print(about(bundle.manifest))
            return EXIT_OK
        if arguments.selftest:
            from sampler.selftest import run_selftest, table

            checks = run_selftest(bundle)
            print(table(checks))
            return EXIT_OK if all(check.is_kept for check in checks) else EXIT_FAILED
        if arguments.serve:
            from sampler.serve import serve

            serve(bundle, arguments.host, arguments.port)
            return EXIT_OK
        return _draw(arguments, bundle)


def _refuse_settings(arguments: argparse.Namespace) -> None:
    """Raise SamplerError for what is wrong whatever the bundle, before a hash is computed."""
    ranges = (
        ("-n", arguments.count, 1, 10**6),
        ("--per-class", arguments.per_class, 1, 10**6),
        ("--steps", arguments.steps, 1, 1000),
        ("--guidance", arguments.guidance, 1, 1000),
        ("--guidance-rescale", arguments.guidance_rescale, 0, 1),
        ("--batch", arguments.batch, 1, 256),
        ("--port", arguments.port, 0, 65535),
    )
    for option, value, least, most in ranges:
        if value is not None and not least <= value <= most:  # a value that is no number is in no range either
            raise SamplerError(f"{option} is {value}; needed is {least} to {most}")
    if arguments.per_class is not None and (arguments.prompt or arguments.count is not None):
        raise SamplerError("--per-class draws the prompts of training; leave out --prompt and -n")
    if arguments.mask_class is not None and arguments.mask is None:
        raise SamplerError("--mask-class says what a mask shows, and no --mask was given")


def _draw(arguments: argparse.Namespace, bundle: Bundle) -> int:
    from sampler.about import prompt_list
    from sampler.draw import Drawer, Settings
    from sampler.image_set import ImageSet
    from sampler.masks import GivenMask, read_masks
    from sampler.plan import plan_classes, plan_prompts
    from sampler.progress import ProgressBar

    manifest = bundle.manifest
    if not arguments.prompt and arguments.per_class is None:
        raise SamplerError(
            f"nothing to draw: give --prompt, --per-class or --serve; it was trained on {prompt_list(manifest, 3)}"
        )
    defaults = manifest.values["sampling"]
    given = {key: getattr(arguments, key) for key in ("sampler", "steps", "guidance", "guidance_rescale")}
    settings = Settings(**{key: defaults[key] if value is None else value for key, value in given.items()})
    masks: list[GivenMask] = []
    if arguments.mask is not None:
        if not manifest.has_controlnet:
            raise SamplerError("the bundle has no ControlNet, so a mask cannot steer it; leave out --mask")
        masks = read_masks(arguments.mask, manifest.palette, manifest.resolution, arguments.mask_class)
    if arguments.per_class is not None:
        plan = plan_classes(manifest, arguments.per_class, arguments.seed, masks)
    else:
        plan = plan_prompts(manifest, arguments.prompt, arguments.count or 1, arguments.seed, masks)
    drawer = Drawer(bundle)
    for prompt in dict.fromkeys([arguments.negative, *(one.prompt for one in plan)]):
        if cut := drawer.prompts.num_cut(prompt):
            print(f"note: {cut} tokens at the end of {prompt!r} do not fit and count for nothing", file=sys.stderr)
    image_set = ImageSet(arguments.out, _told(arguments, bundle, settings, masks), plan)
    num_missing = len(image_set.missing())
    if num_missing < len(plan):
        print(f"{arguments.out} has {len(plan) - num_missing} of {len(plan)} images; drawing the others")
    bar = ProgressBar(num_missing)
    try:
        image_set.draw(drawer, settings, arguments.negative, masks, arguments.batch, bar)
    finally:
        bar.close()
    print(f"{len(plan)} images, labels.csv and contact_sheet.png are in {arguments.out}")
    return EXIT_OK


def _told(arguments: argparse.Namespace, bundle: Bundle, settings: Any, masks: Sequence[Any]) -> dict[str, Any]:
    """Return all that the images depend on: a set is gone on with where these are the same."""
    return {
        "generated": True,
        "simulated": bundle.manifest.is_simulated,
        "bundle": bundle.manifest.name,
        "bundle_sha256": bundle.manifest.sha256,
        "prompts": arguments.prompt,
        "negative_prompt": arguments.negative,
        "count": None if arguments.per_class is not None else arguments.count or 1,
        "per_class": arguments.per_class,
        "seed": arguments.seed,
        **vars(settings),
        "masks": {one.path.as_posix(): hashlib.sha256(one.numbers_HW.tobytes()).hexdigest() for one in masks},
    }

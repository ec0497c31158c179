"""The colours of a hint: what ControlNet is trained on is what diffusers makes of the coloured picture."""

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from data.hints import CLASS_COLOURS, LEVELS, NO_HINT, NO_HINT_COLOUR, coloured, hint_images
from data.manifest import PALETTE


def test_every_class_has_a_colour_of_its_own_and_no_hint_another() -> None:
    assert len(CLASS_COLOURS) >= len(PALETTE)
    assert len({*CLASS_COLOURS, NO_HINT_COLOUR}) == len(CLASS_COLOURS) + 1
    # Databases of your own may bring further classes.
    assert len(np.unique(LEVELS, axis=0)) == 256
    assert coloured(np.array([0, 1, NO_HINT], dtype=np.uint8)).tolist() == [[0, 0, 0], [230, 25, 75], [128, 128, 128]]


def test_a_hint_is_what_diffusers_makes_of_the_coloured_picture() -> None:
    numbers = np.random.default_rng(0).choice([0, 1, 4, 15, NO_HINT], (2, 16, 24)).astype(np.uint8)
    pictures = [Image.fromarray(picture) for picture in coloured(numbers)]
    # As StableDiffusionControlNetPipeline prepares its image.
    processor = VaeImageProcessor(vae_scale_factor=8, do_convert_rgb=True, do_normalize=False)
    theirs = processor.preprocess(pictures, height=16, width=24)
    assert torch.equal(torch.from_numpy(hint_images(numbers)), theirs)

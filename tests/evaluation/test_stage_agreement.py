"""What stands above the images of a sheet."""

from evaluation.stage_agreement import _captions


def test_captions_leave_out_what_all_prompts_begin_with() -> None:
    prompts = ["breast ultrasound, benign, oval", "breast ultrasound, benign mass", "breast ultrasound, malignant"]
    assert _captions(prompts) == ["benign, oval", "benign mass", "malignant"]
    assert _captions(["a heart", "a head"]) == ["a heart", "a head"]
    assert _captions(["a heart, dilated", "a heart"]) == ["dilated", "a heart"]

"""What a simulated image may be called: the simulator's own prompt, and what other people would write."""

# "Ultrasound image of {label} breast" is the prompt of the BUSI experiments in arXiv:2502.08580; the first line of
# each preset is what the proof pictures are sampled with.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "breast": (
        "Ultrasound image of {label} breast",
        "A breast ultrasound image, {label}",
        "B-mode ultrasound of the breast, {label}",
        "{label} breast ultrasound",
        "breast, {label}",
    ),
    "cardiac": (
        "A cardiac ultrasound image, {label}",
        "Ultrasound image of the heart, {label}",
        "Echocardiogram, {label}",
        "{label} heart, B-mode echocardiography",
        "A cardiac ultrasound image",
    ),
    "fetal": (
        "A fetal ultrasound image, {label}",
        "Ultrasound image of a fetal head, {label}",
        "Obstetric ultrasound, fetal head in cross-section, {label}",
        "{label} fetal head, B-mode ultrasound",
        "A fetal ultrasound image",
    ),
}
BREAST_LESIONS = {
    "normal": "Breast ultrasound without a lesion",
    "benign": "Breast ultrasound of a benign lesion",
    "malignant": "Breast ultrasound of a malignant tumour",
}
# Every image has this many paraphrases, so that those of many images make a rectangular table.
NUM_PARAPHRASES = 6


def paraphrases(preset: str, label: str) -> list[str]:
    """Return NUM_PARAPHRASES captions that fit any image of `preset` and `label`; they may repeat."""
    texts = [template.format(label=label) for template in TEMPLATES[preset]]
    texts.append(BREAST_LESIONS.get(label, texts[0]) if preset == "breast" else texts[0])
    assert len(texts) == NUM_PARAPHRASES
    return texts


def proof_prompt(preset: str, label: str) -> str:
    """Return the caption that the proof pictures of `preset` and `label` are sampled with."""
    return paraphrases(preset, label)[0]

"""What each figure of an evaluation is, in words for those who read images, what good looks like, and its source."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """title: as the page names it. source: the paper that it is of."""

    title: str
    meaning: str
    good: str
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return it in JSON's types."""
        return asdict(self)


AS_REAL = "no farther from one half of the held-out patients than the other half is"
MEASURES = {
    "fid": Measure(
        "FID of features",
        "How far the average and the spread of what a network sees in the images are from those of real ones.",
        AS_REAL,
        "Heusel et al. 2017 (arXiv:1706.08500)",
    ),
    "kid": Measure(
        "KID of features",
        "The same by comparing images pair by pair; it needs fewer images than FID, and may be a little below 0.",
        AS_REAL,
        "Bińkowski et al. 2018 (arXiv:1801.01401)",
    ),
    "distance": Measure(
        "ultrasound statistics",
        "Mean over the statistics of speckle and texture below of how far their distributions are apart, as Wasserstein"
        " distances in standard deviations of the training images.",
        AS_REAL,
        "Villani 2009 (doi:10.1007/978-3-540-71050-9)",
    ),
    "speckle_snr": Measure(
        "speckle SNR",
        "Mean over standard deviation of the echo's strength within small patches of tissue.",
        "about as in real images; 1.91 is fully developed speckle, and blur raises it",
        "Burckhardt 1978 (doi:10.1109/T-SU.1978.30978)",
    ),
    "nakagami_m": Measure(
        "Nakagami m",
        "Shape of the distribution of the echo's strength, which tells how many scatterers there are and how even.",
        "about as in real images; 1 is fully developed speckle, and blur raises it",
        "Shankar 2000 (doi:10.1109/58.842062)",
    ),
    "axial_width_px": Measure(
        "speckle length, down (px)",
        "Size of a speckle along the beam, in pixels.",
        "as in real images: longer is blurred, shorter is noise",
        "Wagner et al. 1983 (doi:10.1109/T-SU.1983.31404)",
    ),
    "lateral_width_px": Measure(
        "speckle width, across (px)",
        "Size of a speckle across the beam, in pixels.",
        "as in real images: wider is blurred, narrower is noise",
        "Wagner et al. 1983 (doi:10.1109/T-SU.1983.31404)",
    ),
    "glcm_contrast": Measure(
        "texture contrast (GLCM)",
        "How much neighbouring pixels differ, from the grey-level co-occurrence matrix.",
        "as in real images: less is too smooth, more is grainy",
        "Haralick et al. 1973 (doi:10.1109/TSMC.1973.4309314)",
    ),
    "glcm_homogeneity": Measure(
        "texture homogeneity (GLCM)",
        "How alike neighbouring pixels are, from the grey-level co-occurrence matrix.",
        "as in real images: more is too smooth",
        "Haralick et al. 1973 (doi:10.1109/TSMC.1973.4309314)",
    ),
    "brightness": Measure(
        "brightness (grey level)",
        "Mean grey level of the tissue, 0 black to 255 white.",
        "as in real images: it moves with gain and dynamic range",
        "the mean",
    ),
    "balanced_accuracy": Measure(
        "right answers",
        "Share of the images that a classifier of real images gives the label they were asked for, each label counted"
        " alike however rare it is (balanced accuracy).",
        "as high as in real images, and well above chance",
        "Brodersen et al. 2010 (doi:10.1109/ICPR.2010.764)",
    ),
    "auc": Measure(
        "AUC",
        "How often the classifier holds an image of a label for likelier to have it than one of another label.",
        "as high as in real images; 0.5 is chance, 1 never wrong",
        "Hanley & McNeil 1982 (doi:10.1148/radiology.143.1.7063747)",
    ),
    "dice": Measure(
        "Dice",
        "How much the structure that a segmenter of real images finds overlaps the mask that was asked for.",
        "as in real images that went through the VAE, and well above another's mask; 1 is the same outline, 0 none",
        "Dice 1945 (doi:10.2307/1932409)",
    ),
    "hausdorff_95_px": Measure(
        "outline off by",
        "Distance that 95 % of the outline is within, in pixels (95th percentile of Hausdorff); of the median image.",
        "as few pixels as in real images",
        "Huttenlocher et al. 1993 (doi:10.1109/34.232073)",
    ),
    "suspects": Measure(
        "suspects",
        "Images nearer to a training image, for what lies around it, than all but about one in a hundred new patients.",
        "no more than among new patients; a share has Wilson's interval (Wilson 1927,"
        " doi:10.1080/01621459.1927.10502953)",
        "Carlini et al. 2023 (arXiv:2301.13188)",
    ),
    "copies": Measure(
        "copies",
        "Images less than half as far from a training image as the nearest of all held-out patients.",
        "none",
        "Carlini et al. 2023 (arXiv:2301.13188)",
    ),
}

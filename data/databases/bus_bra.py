"""BUS-BRA: breast lesions of known histology, a table of patients and BI-RADS categories beside them."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from data.databases.base import About, FolderDatabase, Row
from data.databases.birads import birads
from data.databases.known_value import known_value
from data.databases.named_files import named_files
from data.databases.table import read_rows

TABLE = "bus_data.csv"
COLUMNS = ("ID", "Case", "Histology", "Pathology", "BIRADS", "Device", "Side")


class BusBra(FolderDatabase):
    """`BUSBRA` as it is downloaded."""

    about: ClassVar[About] = About(
        title="BUS-BRA, Breast Ultrasound Dataset of Brazil",
        layout=("Images/bus_0001-l.png", "Masks/mask_0001-l.png", f"{TABLE} with {', '.join(COLUMNS)}"),
        labels="benign 1,268, malignant 607 (Pathology, by biopsy)",
        masks="lesion",
        patients="Case: 1,064, most with two views",
        licence="CC BY 4.0",
        citation="Gomez-Flores et al. 2024, doi:10.1002/mp.16812",
        faults=(
            "Side (left, right, single) and the -l, -r, -s of the names seem to be halves of a split screen, not sides "
            "of the body: 1,875 images of 1,064 patients are 811 pairs and 253 single ones. No default prompt says it",
            "four scanners with different looks: see the attribute device",
        ),
    )
    default_prompts: ClassVar[tuple[str, ...]] = (
        "Ultrasound image of {label} breast",
        "Breast ultrasound of a {label} lesion, {birads}",
        "Breast ultrasound, {histology}, {birads}",
    )
    attributes: ClassVar[tuple[str, ...] | None] = ("histology", "birads", "device", "side")
    needed: ClassVar[tuple[str, ...]] = ("Images/", "Masks/", TABLE)

    kind: Literal["bus-bra"] = "bus-bra"

    def rows(self, workspace: Path) -> Iterator[Row]:
        """Yield images in the order of the table."""
        self.check_layout()
        path = self.root / TABLE
        table = list(read_rows(path, COLUMNS))
        images = named_files(self.root / "Images", [row["ID"] for row in table], path)
        masks = named_files(self.root / "Masks", [_mask_name(row["ID"]) for row in table], path)
        for row in table:
            id_ = row["ID"]
            label = known_value(row["Pathology"], ("benign", "malignant"), f"{path}: Pathology of {id_}")
            said = {
                "histology": row["Histology"].lower(),
                "birads": birads(row["BIRADS"], f"{path}: BIRADS of {id_}"),
                "device": row["Device"],
                "side": row["Side"].lower(),
            }
            attributes = {name: words for name, words in said.items() if words}
            yield Row(
                id=id_,
                image=images[id_],
                prompts=self.fill_prompts(label=label, organ="breast", pathology=label, **attributes),
                label=label,
                masks=(masks[_mask_name(id_)],),
                mask_classes={255: "lesion"},
                organ="breast",
                pathology=label,
                attributes=attributes,
                patient=row["Case"] or None,
                licence=self.about.licence,
            )


def _mask_name(id_: str) -> str:
    return f"mask_{id_.removeprefix('bus_')}"

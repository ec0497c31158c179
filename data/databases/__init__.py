"""Databases of ultrasound images: one settings model a kind, which yields rows of one format."""

from typing import Annotated

from pydantic import Field

from data.databases.base import Database, Row, UserPath
from data.databases.breast import Breast
from data.databases.bus_bra import BusBra
from data.databases.bus_uclm import BusUclm
from data.databases.busi import Busi
from data.databases.fetal_planes import FetalPlanes
from data.databases.manifest_file import ManifestFile
from data.databases.mmotu import Mmotu
from data.databases.simulated import SimulatedDatabase
from data.databases.udiat import Udiat

# A database of a config file: its `kind` says which model reads it.
AnyDatabase = Annotated[
    Breast | BusBra | BusUclm | Busi | FetalPlanes | ManifestFile | Mmotu | SimulatedDatabase | Udiat,
    Field(discriminator="kind"),
]

__all__ = [
    "AnyDatabase",
    "Breast",
    "BusBra",
    "BusUclm",
    "Busi",
    "Database",
    "FetalPlanes",
    "ManifestFile",
    "Mmotu",
    "Row",
    "SimulatedDatabase",
    "Udiat",
    "UserPath",
]

"""Databases of ultrasound images: one settings model a kind, which yields rows of one format."""

from typing import Annotated

from pydantic import Field

from data.databases.base import Database, Row, UserPath
from data.databases.breast import Breast
from data.databases.bus_bra import BusBra
from data.databases.bus_uclm import BusUclm
from data.databases.busi import Busi
from data.databases.camus import Camus
from data.databases.ddti import Ddti
from data.databases.echonet import Echonet
from data.databases.fetal_planes import FetalPlanes
from data.databases.hc18 import Hc18
from data.databases.manifest_file import ManifestFile
from data.databases.mmotu import Mmotu
from data.databases.simulated import SimulatedDatabase
from data.databases.tn3k import Tn3k
from data.databases.udiat import Udiat

# A database of a config file: its `kind` says which model reads it.
AnyDatabase = Annotated[
    Breast
    | BusBra
    | BusUclm
    | Busi
    | Camus
    | Ddti
    | Echonet
    | FetalPlanes
    | Hc18
    | ManifestFile
    | Mmotu
    | SimulatedDatabase
    | Tn3k
    | Udiat,
    Field(discriminator="kind"),
]

__all__ = [
    "AnyDatabase",
    "Breast",
    "BusBra",
    "BusUclm",
    "Busi",
    "Camus",
    "Database",
    "Ddti",
    "Echonet",
    "FetalPlanes",
    "Hc18",
    "ManifestFile",
    "Mmotu",
    "Row",
    "SimulatedDatabase",
    "Tn3k",
    "Udiat",
    "UserPath",
]

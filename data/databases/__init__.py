"""Databases of ultrasound images: one settings model a kind, which yields rows of one format."""

from typing import Annotated

from pydantic import Field

from data.databases.base import Database, Row, UserPath
from data.databases.busi import Busi
from data.databases.camus import Camus
from data.databases.ddti import Ddti
from data.databases.echonet import Echonet
from data.databases.hc18 import Hc18
from data.databases.manifest_file import ManifestFile
from data.databases.simulated import SimulatedDatabase
from data.databases.tn3k import Tn3k

# A database of a config file: its `kind` says which model reads it.
AnyDatabase = Annotated[
    Busi | Camus | Ddti | Echonet | Hc18 | ManifestFile | SimulatedDatabase | Tn3k, Field(discriminator="kind")
]

__all__ = [
    "AnyDatabase",
    "Busi",
    "Camus",
    "Database",
    "Ddti",
    "Echonet",
    "Hc18",
    "ManifestFile",
    "Row",
    "SimulatedDatabase",
    "Tn3k",
    "UserPath",
]

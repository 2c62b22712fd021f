"""Items of other products than Sentinel-2 L2A: how collection, properties and id tell them."""

import re
from typing import Any

from kiln.archives.sentinel2.spellings import PROPERTIES

OWN_PRODUCT = re.compile(r"\b(?:s2msi|msil|level-?|l)2a\b")  # in texts of small letters, with hyphens
MISSION = re.compile(r"\bsentinel-?s?-?([13-6]p?)(?!\d)")
LANDSAT = re.compile(r"\blandsat")
LEVEL_1 = re.compile(r"\b(?:s2msi|msil|level-?|l)1[abc]\b")
LEVELS_1 = ("1", "l1", "level1", "level-1")  # of a property that holds a level alone
ID_OF_SENTINEL_1, ID_OF_LANDSAT = re.compile(r"s1[a-d]-"), re.compile(r"l[cetmo]0\d-")


def other_product(text: str) -> str:
    """Return the product that a text names, such as `Sentinel-1`; empty if it names Sentinel-2 L2A, or none."""
    words = _words(text)
    if OWN_PRODUCT.search(words):
        return ""
    if mission := MISSION.search(words):
        return f"Sentinel-{mission[1].upper()}"
    if LANDSAT.search(words) or ID_OF_LANDSAT.match(words):
        return "Landsat"
    if ID_OF_SENTINEL_1.match(words):
        return "Sentinel-1"
    return "Sentinel-2 L1C" if LEVEL_1.search(words) else ""


def refusal(feature: dict[str, Any], href: str) -> str:
    """Return why an item is of another product than Sentinel-2 L2A; empty if nothing in it says so.

    Args:
        feature: The item's document, with its id and properties.
        href: Its address.
    """
    properties = feature["properties"]
    texts = {"id": feature["id"], "collection": feature.get("collection")}
    texts |= {name: properties.get(name) for name in ("platform", "constellation", *PROPERTIES["product type"])}
    for name, text in texts.items():
        product = other_product(str(text)) if text else ""
        if not product and name in PROPERTIES["product type"] and _words(str(text)) in LEVELS_1:
            product = "Sentinel-2 L1C"
        if product:
            return f"{href}: expected an item of Sentinel-2 L2A, got one of {product} ({name} {str(text)!r:.100})."
    return ""


def _words(text: str) -> str:
    return re.sub(r"[\s_.]+", "-", text.strip().lower())

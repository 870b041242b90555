"""Which languages go together. A table, so that it can be argued with: families of isolates are a convention."""

from __future__ import annotations

from collections.abc import Mapping

_MEMBERS = {
    "germanic": "af da de en fy is lb nb nl nn no sv yi",
    "romance": "ca es fr gl it oc pt ro",
    "slavic": "be bg bs cs hr mk pl ru sk sl sr uk",
    "baltic": "lt lv",
    "uralic": "et fi hu",
    "celtic": "br cy ga gd",
    "hellenic": "el",
    "indic": "bn gu hi mr ne pa si ur",
    "iranian": "fa ku ps tg",
    "turkic": "az kk ky tr uz",
    "semitic": "am ar he mt",
    "sinitic": "yue zh",
    "japonic": "ja",
    "koreanic": "ko",
    "tai": "lo th",
    "austroasiatic": "km vi",
    "austronesian": "id jv mg ms su tl",
    "bantu": "lg ln sw xh zu",
    "dravidian": "kn ml ta te",
    "kartvelian": "ka",
    "armenian": "hy",
    "albanian": "sq",
    "basque": "eu",
}
LANGUAGE_FAMILIES: Mapping[str, str] = {code: name for name, codes in _MEMBERS.items() for code in codes.split()}

# The paper's own groups: for Europarl linguistic, for TED2020 by convenience (Chinese, English and Thai together).
EUROPARL_FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(("de", "en", "nl"), "de-en-nl"),
    **dict.fromkeys(("fr", "it", "es"), "fr-it-es"),
    **dict.fromkeys(("pl", "sl"), "pl-sl"),
    **dict.fromkeys(("lt", "lv"), "lt-lv"),
}
TED2020_FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(("zh", "en", "th"), "zh-en-th"),
    **dict.fromkeys(("ar", "he"), "ar-he"),
    **dict.fromkeys(("fi", "et"), "fi-et"),
    **dict.fromkeys(("ru", "sl"), "ru-sl"),
}


def family_of(language: str, families: Mapping[str, str] | None = None) -> str:
    """The family of a language code such as ``de``, ``de_DE`` or ``zh-cn``; a language without one is its own."""
    table = LANGUAGE_FAMILIES if families is None else families
    plain = language.replace("-", "_").split("_")[0].lower()
    return table.get(language, table.get(plain, plain))

"""Text in figures: names, fonts that can draw them, and how many items are shown."""

import functools
from collections.abc import Sequence
from itertools import accumulate
from unicodedata import category, east_asian_width

import matplotlib as mpl
from matplotlib import font_manager

from pipeline.report.tables import code_span

CLASSES_SHOWN = 40  # maximum number of classes in a figure or table with a row or an image per class
MAX_LABEL_WIDTH = 18  # maximum width of a class's name in a figure, in Latin letters


def literal(text: str) -> str:
    """Escape ``text`` so that matplotlib draws it literally, with its dollar signs, and does not drop it from legends.

    >>> literal("$x_1$")
    '\\\\$x_1\\\\$'
    """
    hidden = "\u200b" if text.startswith("_") else ""  # a legend leaves out names that begin with an underscore
    return hidden + text.replace("$", r"\$")


def counted(shown: int, total: int, what: str) -> str:
    """Return how many of all items are shown; empty if all are.

    >>> counted(40, 1000, "classes"), counted(10, 10, "classes")
    ('40 of 1,000 classes shown', '')
    """
    return f"{shown:,} of {total:,} {what} shown" if shown < total else ""


def class_labels(classes: Sequence[str]) -> list[str]:
    """Return the label of each class: its name, shortened if it is long, or its number if no font can draw it.

    Installed fonts that have characters missing from matplotlib's fonts are added to its setting ``font.family``.

    >>> class_labels(["$x_1$", "yorkshire_terrier_dog", "line\\nbreak"])
    ['$x_1$', 'yorkshire_ter… (1)', 'class 2']
    """
    characters = frozenset("".join(classes))
    controls = frozenset(character for character in characters if category(character) == "Cc")  # such as a line break
    families, without_font = _fallback_fonts(characters - controls - _characters(*mpl.rcParams["font.family"]))
    mpl.rcParams["font.family"] = list(dict.fromkeys([*mpl.rcParams["font.family"], *families]))
    unwritable = controls | without_font
    return [
        f"class {number}" if unwritable.intersection(name) else _shortened(name, number)
        for number, name in enumerate(classes)
    ]


def _shortened(name: str, number: int) -> str:
    widths = list(accumulate(2 if east_asian_width(character) in "WF" else 1 for character in name))
    if not widths or widths[-1] <= MAX_LABEL_WIDTH:
        return name
    end = f"… ({number})"  # long names may have the same beginning
    return name[: sum(width <= MAX_LABEL_WIDTH - len(end) for width in widths)].rstrip() + end


@functools.cache
def _characters(*families: str) -> frozenset[str]:
    """Return the characters that fonts have, none for a font that is not scalable."""
    characters: set[str] = set()
    for family in families:
        try:
            font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties(family=[family])))
        except RuntimeError:  # raised by FreeType for some colour fonts
            continue
        characters.update(map(chr, font.get_charmap()) if font.scalable else ())
    return frozenset(characters)


@functools.cache
def _fallback_fonts(missing: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return installed fonts that together have all available missing characters, and the characters no font has."""
    chosen: list[str] = []
    if missing:
        installed = {font.name for font in font_manager.fontManager.ttflist if _usable(font)}
        has = {family: missing & _characters(family) for family in installed}
        while (best := min((-len(characters & missing), family) for family, characters in has.items()))[0]:
            chosen.append(best[1])
            missing -= has[best[1]]
    return tuple(chosen), missing


def _usable(font: font_manager.FontEntry) -> bool:
    """Return whether a font is upright, of normal weight, and draws characters, not placeholder boxes."""
    return font.style == "normal" and font.weight == 400 and "lastresort" not in font.name.lower().replace(" ", "")


def names_note(classes: Sequence[str]) -> str:
    """Return, in Markdown, the names of the classes that are renamed in figures; empty if there are none."""
    labels = class_labels(classes)
    renamed = [(label, name) for label, name in zip(labels, classes, strict=True) if label != name]
    if not renamed:
        return ""
    listed = ", ".join(f"{code_span(label)} is {code_span(name)}" for label, name in renamed[:CLASSES_SHOWN])
    shown = counted(min(len(renamed), CLASSES_SHOWN), len(renamed), "such names")
    return (
        "**Names in figures.** Figures shorten long names, and show a class by its number if no installed font has "
        f"the name's characters: {listed}{f' ({shown})' if shown else ''}."
    )

"""Lookup tables of a header: modality and VOI LUT, palettes (PS3.3 C.11.1, C.11.2, C.7.6.3.1.5).

Not pydicom's ``apply_modality_lut``, ``apply_voi`` and ``apply_color_lut``. They trust the
descriptor and show a wrong picture, or stop, where a device wrote another depth or number of
entries than it declares, a negative first value as unsigned, entries as signed, or two in a word.
"""

from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset

from chexnet.dicom.header import FilmError, library_errors, read_value

_MISSING = 16  # a table may lack 1/16 of its entries; its last one is used for them


class LookupTable(NamedTuple):
    """The table of one item."""

    entries: np.ndarray  # int64 (N,), 0 to 65535
    first: int  # the value that the first entry is for
    bits: int  # of an entry, as used: 8 to 16
    remarks: list[str]  # where its descriptor says something else

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """The entries for some values; those beyond an end of the table get the entry there."""
        index = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(index, 0, len(self.entries) - 1)]


def read_table(item: Dataset, name: str, lowest: float, highest: float) -> LookupTable | None:
    """Reads the table of an item of a LUT sequence, or of one color of a palette.

    Args:
        item: what holds the elements.
        name: how their keywords begin, such as "LUT".
        lowest: the lowest value that may be looked up.
        highest: the highest.

    Returns:
        None if there is no descriptor or no data.

    Raises:
        FilmError: a descriptor that is not three numbers, or many entries are missing.
    """
    descriptor, entries = _words(item, f"{name}Descriptor"), _words(item, f"{name}Data")
    if descriptor is None or entries is None:
        return None
    if len(descriptor) != 3:
        raise FilmError("a lookup table without a descriptor of three integers")
    count, first, declared = (int(number) for number in descriptor)
    count = count or 65536  # PS3.3 C.11.1.1.1
    remarks = []
    if count > 1 and len(entries) == (count + 1) // 2:  # two a word, the low byte first
        entries = np.stack([entries & 255, entries >> 8], axis=1).ravel()
    if (missing := count - len(entries)) > count // _MISSING:
        raise FilmError(f"a lookup table of {len(entries)} entries; expected {count}")
    if missing > 0:
        remarks.append(f"{len(entries)} entries, {count} declared")
    entries = entries[:count]
    # As dcmtk's --ignore-vlut-depth: Agfa and others declare 16 bits and use 12, or the reverse.
    bits = max(8, int(entries.max()).bit_length())
    if bits != declared:
        remarks.append(f"{bits} bits, {declared} declared")
    return LookupTable(entries, _first_value(first, count, lowest, highest), bits, remarks)


def _words(item: Dataset, keyword: str) -> np.ndarray | None:
    """An element's 16-bit numbers as unsigned ones, whatever its VR; int64 (N,), None if empty."""
    value = read_value(item, keyword, object)
    if value is None:
        return None
    with library_errors(f"damaged: {keyword} cannot be read"):
        if isinstance(value, bytes):
            order = "<" if item.original_encoding[1] else ">"
            value = np.frombuffer(value + bytes(len(value) % 2), f"{order}u2")
        # PS3.3 C.11.1.1.2: entries are unsigned, also where their VR is SS.
        words = np.atleast_1d(np.asarray(value, np.int64)) & 0xFFFF
    return words if len(words) else None


def _first_value(word: int, count: int, lowest: float, highest: float) -> int:
    """The first value mapped, which is signed if values can be below zero (PS3.3 C.11.2.1.1).

    Whatever the VR says. Only where the table would then cover none of the values, a word above
    32767 is the other number that it can be.
    """
    signed = word - 65536 if word > 32767 else word
    usual, other = (signed, word) if lowest < 0 else (word, signed)
    covers_none = usual > highest or usual + count <= lowest
    return other if covers_none else usual

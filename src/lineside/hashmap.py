"""What is known of every row of a data set, in a few bytes a row: Python's own objects take a hundred and more."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right

MOST = 2048  # entries of a block: few enough to be moved for each new one


class HashMap:
    """64-bit hashes -> whole numbers below 2^63, in some 24 bytes an entry: sorted blocks, cut in two when full.

    No large block is ever allocated anew, so no holes are left in the heap. Names are not kept, so two with the same
    hash are one: among n names with a probability of n^2 / 2^65, which is 3e-8 for a million.
    """

    def __init__(self) -> None:
        self._firsts = array("Q", [0])  # of each block, the least hash that belongs into it
        self._keys, self._values = [array("Q")], [array("q")]

    def __len__(self) -> int:
        return sum(map(len, self._keys))

    def __contains__(self, key: int) -> bool:
        return self.get(key) is not None

    def get(self, key: int) -> int | None:
        """The number of a hash; None for one that is not there."""
        block, place, there = self._find(key)
        return self._values[block][place] if there else None

    def __setitem__(self, key: int, value: int) -> None:
        block, place, there = self._find(key)
        keys, values = self._keys[block], self._values[block]
        if there:
            values[place] = value
            return
        keys.insert(place, key)
        values.insert(place, value)
        if len(keys) > MOST:
            half = len(keys) // 2
            self._firsts.insert(block + 1, keys[half])
            self._keys[block : block + 1] = keys[:half], keys[half:]
            self._values[block : block + 1] = values[:half], values[half:]

    def _find(self, key: int) -> tuple[int, int, bool]:
        """(block, place in it, whether the key is there)."""
        block = bisect_right(self._firsts, key) - 1
        keys = self._keys[block]
        place = bisect_left(keys, key)
        return block, place, place < len(keys) and keys[place] == key


class Texts:
    """Texts by number, as one block of bytes: 8 bytes each beside their own."""

    def __init__(self) -> None:
        self._block, self._ends = bytearray(), array("Q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, text: str) -> int:
        """Keep a text; returns its number."""
        self._block += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._block))
        return len(self) - 1

    def __getitem__(self, number: int) -> str:
        start, end = self._ends[number : number + 2]
        return self._block[start:end].decode("utf-8", "surrogatepass")

"""Read ahead in a thread, so that the device does not wait for the CPU to make its next work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lineside.training.cost import Cost

T = TypeVar("T")


def ahead(items: Iterable[T], cost: Cost) -> Iterator[T]:
    """The items in order. Each is made by a thread while the one before is in use; an exception comes where its item
    would have come. The time that the caller waits for an item is added to the phase "read"."""
    ended = object()
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, iterator, ended)
        while True:
            with cost.clock("read"):
                item = following.result()
            if item is ended:
                return
            following = pool.submit(next, iterator, ended)
            yield item  # pyright: ignore[reportReturnType] # `ended` is not an item

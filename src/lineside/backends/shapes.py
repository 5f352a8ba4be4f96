"""Lengths that are padded to round numbers."""


def rounded(count: int, parts: int) -> int:
    """`count`, rounded up to a multiple of (the next power of two) / `parts`.

    A CPU's matrix library builds a kernel for every new shape, and building takes longer than running. With a few round
    shapes less time is lost to padding than is saved (25% of a step here, docs/experiments.md).
    """
    step = max(1, (1 << (count - 1).bit_length()) // parts) if count else 1
    return -(-count // step) * step

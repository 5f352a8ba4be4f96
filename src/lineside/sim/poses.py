"""Rotations in three dimensions: matrices (3, 3) and MuJoCo's quaternions (w, x, y, z)."""

from __future__ import annotations

import numpy as np


def about(axis: str, degrees: float) -> np.ndarray:
    """The rotation by an angle about "x", "y" or "z"."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def matrices(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions (n, 4), of any length, as rotations (n, 3, 3)."""
    w, x, y, z = (np.atleast_2d(quaternions) / np.linalg.norm(np.atleast_2d(quaternions), axis=1, keepdims=True)).T
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return np.stack(rows, 1).reshape(-1, 3, 3)


def quaternion(matrix: np.ndarray) -> np.ndarray:
    """A rotation (3, 3) as a unit quaternion (4,)."""
    m = matrix
    # The largest of the four components is found first, to avoid a division by a small number.
    squares = np.array(
        [1 + m[0, 0] + m[1, 1] + m[2, 2], 1 + m[0, 0] - m[1, 1] - m[2, 2],
         1 - m[0, 0] + m[1, 1] - m[2, 2], 1 - m[0, 0] - m[1, 1] + m[2, 2]]
    )  # fmt: skip
    k = int(np.argmax(squares))
    a, b, c = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    d, e, f = m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1]
    rows = ((squares[0], a, b, c), (a, squares[1], d, e), (b, d, squares[2], f), (c, e, f, squares[3]))
    q = np.array(rows[k])
    return q / np.linalg.norm(q)

"""Vectors in .npy files, as options name them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from ..types import Floats


def matrix(path: Path) -> Floats:
    """The array in a .npy file, mapped and not read; nothing in it is ever run. Raises InputError."""
    import numpy as np

    wanted = f"{path}: expected a .npy file with one array of numbers"
    try:
        vectors: Floats = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise InputError(f"{wanted}, there is no such file; check the path") from error
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"{wanted}, and cannot read it ({why}); give a file that you may read") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{wanted}, got something else ({error}); write one with numpy.save") from error
    return vectors


def one(path: Path) -> Floats:
    """The one vector in a .npy file, of shape (dim,) or (1, dim). Raises InputError."""
    array = matrix(path)
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1:
        raise InputError(f"{path}: expected one vector, got an array of shape {array.shape}")
    return array

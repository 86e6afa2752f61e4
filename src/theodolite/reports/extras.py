"""Libraries that only a report needs, imported when it is drawn."""

from __future__ import annotations

import importlib
from types import ModuleType


def extra(module: str) -> ModuleType:
    """Import a library of the ``report`` extra.

    Args:
        module: dotted name.

    Returns:
        The module.

    Raises:
        ImportError: if it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise ImportError(
            f'A report needs {error.name}, which is not installed. Install it with: pip install "theodolite[report]"'
        ) from error

"""What the project uses of Gin beyond its public functions: search path, parser, references.

Tried with gin-config 0.5.0, the only release from 0.5 on so far.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gin.config
from gin.config import ConfigurableReference, ParserDelegate
from gin.config_parser import BindingStatement, ConfigParser

__all__ = [
    "BindingStatement",
    "ConfigParser",
    "ConfigurableReference",
    "ParserDelegate",
    "search_path",
]


@contextmanager
def search_path(folders: Sequence[Path]) -> Iterator[None]:
    """Have Gin look for included files in these folders only, without a log line per miss."""
    prefixes = gin.config._LOCATION_PREFIXES  # the public function only adds to this list
    before = list(prefixes)
    # Absolute paths: Gin takes the folder of a relative one for a Python package.
    prefixes[:] = [str(folder.resolve()) for folder in folders]
    logging.getLogger().addFilter(_is_not_about_missing_path)
    try:
        yield
    finally:
        prefixes[:] = before
        logging.getLogger().removeFilter(_is_not_about_missing_path)


def _is_not_about_missing_path(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Path not found")

"""The untouched installed pylidc 0.2.3, made to work for as long as a test asks it.

It needs names that setuptools, numpy and Python have dropped; they are put back inside the block only. No DICOM is read
through it (that would write a file into the home folder).
"""

import builtins
import configparser
import importlib
import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

DROPPED_BY_NUMPY = {"int": builtins.int, "float": builtins.float, "bool": builtins.bool}


@contextmanager
def pylidc() -> Iterator[types.ModuleType]:
    """The module `pylidc`, usable inside the block."""
    with ExitStack() as stack:
        for name, kind in DROPPED_BY_NUMPY.items():
            stack.enter_context(patch.object(np, name, kind, create=True))
        stack.enter_context(patch.object(configparser, "SafeConfigParser", configparser.ConfigParser, create=True))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        module = _imported()
        try:
            yield module
        finally:
            module._session.close()
            module._engine.dispose()


@cache
def _imported() -> types.ModuleType:
    """Imported once: its tables cannot be declared twice."""
    missing = object()
    before = sys.modules.get("pkg_resources", missing)
    sys.modules["pkg_resources"] = _pkg_resources()
    try:
        importlib.import_module("pylidc.utils")
        return importlib.import_module("pylidc")
    finally:
        if before is missing:
            del sys.modules["pkg_resources"]
        else:
            sys.modules["pkg_resources"] = before


def _pkg_resources() -> types.ModuleType:
    stub = types.ModuleType("pkg_resources")
    stub.resource_filename = _resource_filename
    return stub


def _resource_filename(package: str, name: str) -> str:
    return str(Path(importlib.util.find_spec(package).origin).parent / name)

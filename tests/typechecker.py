"""What checks types and shapes while tests run (`conftest.py` puts it on every function of the rooms)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype, for which an `int` is a `float` too, as it is for mypy."""

"""The run-time checker of shapes and types that `conftest.py` installs: beartype, to which a whole number is a float."""

from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))

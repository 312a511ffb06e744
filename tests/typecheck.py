"""The type checker under which the tests run the public ops."""

from beartype import BeartypeConf, beartype

# An int may stand for a float, as static checkers have it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))

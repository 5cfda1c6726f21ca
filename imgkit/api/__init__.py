"""What programs do with imgkit: the functions behind the names of :mod:`imgkit`, which the commands call as well."""

from imgkit.host import namesake as _namesake

_namesake.refuse()  # the other project's package of the name imgkit, which may have come over this one, has an api, too

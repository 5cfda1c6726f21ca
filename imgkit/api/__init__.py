"""What programs do with imgkit: the functions behind the names of :mod:`imgkit`, which the commands call as well."""

"""Alpine's package formats and rules: versions, indexes, packages, signatures, the solver, the installed database."""

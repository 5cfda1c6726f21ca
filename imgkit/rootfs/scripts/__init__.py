"""Package scripts, computed: a small strict shell whose commands are functions on the Tree."""

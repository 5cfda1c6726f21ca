"""The annotations by which the index of a layout names its images."""

REF_NAME = "org.opencontainers.image.ref.name"
"""A name that tools take for a tag (image-spec 1.1, "Annotations", section "Pre-Defined Annotation Keys")."""
FULL_NAME = "io.containerd.image.name"
"""The whole name of an image, where containerd, BuildKit and Docker look for it."""

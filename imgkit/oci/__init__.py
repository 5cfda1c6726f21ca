"""Container images in the formats of the Open Container Initiative: documents, layers, layouts and archives.

Nothing here runs a program or talks to a registry. Specification: image-spec 1.1.
"""

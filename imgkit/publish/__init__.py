"""Publish the files of a build in a folder from which the host application downloads images."""

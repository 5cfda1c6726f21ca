"""Publishing: what a build made becomes the folder that the host application downloads images from."""

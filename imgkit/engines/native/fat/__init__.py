"""The FAT of the EFI system partition: records (``fatrecords``), sizes, names, and what writes them (``fatwriter``)."""

"""What lies on disk, and the records that flow between packages."""

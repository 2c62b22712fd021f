"""The archives that Kiln reads, each in a package of its own, and their registry."""

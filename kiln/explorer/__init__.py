"""The explorer database: building it, searching it, and pictures of its chips."""

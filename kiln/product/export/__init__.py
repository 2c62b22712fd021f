"""Exports of products, of parts of them and of searches, to files of other formats."""

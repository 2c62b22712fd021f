"""What a product states about itself: STAC, the catalog of a run, the data card, tables of columns."""

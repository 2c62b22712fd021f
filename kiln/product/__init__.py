"""Products: shards merged to sorted GeoParquet with STAC metadata."""

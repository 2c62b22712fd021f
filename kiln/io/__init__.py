"""Files, GDAL, progress and memory. This package knows no archive and no model."""

"""Files, GDAL, progress and processes; knows no archive and no model."""

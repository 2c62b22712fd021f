"""The synthetic archives of the sample run."""

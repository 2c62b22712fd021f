"""Clay v1.5: the encoder, its weights, and how it is run."""

"""The rows of a product: its part files, filters, and streams of batches."""

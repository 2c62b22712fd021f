"""The embedding pipeline: a source of chips in, an embeddings file and its ledger out."""

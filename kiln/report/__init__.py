"""What a run takes, how far it is, and what became of it."""

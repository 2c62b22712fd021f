"""The status of runs: what is done, missing and failing, what it took so far, and what to run next."""

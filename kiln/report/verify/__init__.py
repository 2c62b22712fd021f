"""Verification of a run: every file that it holds is read and compared with what was written."""

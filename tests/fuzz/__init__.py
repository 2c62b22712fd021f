"""Damaged inputs, made by seed from sound ones, and what the code that reads them does.

`python -m tests.fuzz` (`make fuzz`) reads 635 of them, each in a process of its own with a time limit. A traceback, a
hang, a process that dies, or another result without a word is a failure. `tests/unit/test_fuzz.py` reads a few.
"""

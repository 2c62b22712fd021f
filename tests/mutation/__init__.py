"""Small mistakes in guards and core arithmetic, one at a time, that the tests must notice.

`python -m tests.mutation` (`make mutation`) makes each change of `tests/mutation/mutations.py` in a copy of the tree
and runs the tests that it names. A change that they do not notice is a survivor: a test is missing.
"""

"""Kiln's scripts: one module per rule, typed pure functions and a thin `main`."""

"""Tests of kiln/report/verify."""

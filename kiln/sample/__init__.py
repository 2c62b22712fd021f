"""Small synthetic archives of one landscape, so that the demo and the tests need no network."""

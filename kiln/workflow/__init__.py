"""What the rules call: paths, datasets and commands of a run, and its config. Free of heavy imports."""

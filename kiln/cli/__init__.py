"""The command `kiln`: one module for each subcommand, imported when it is called."""

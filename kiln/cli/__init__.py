"""The command `kiln`: what people run by hand."""

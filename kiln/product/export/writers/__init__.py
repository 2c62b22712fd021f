"""Writers of exported rows, a module per format."""

"""What the command line does, one module per command; nothing here is on the compile path."""

"""The command line `memoir`."""

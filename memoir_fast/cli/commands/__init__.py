"""The commands of `memoir`, a module each."""

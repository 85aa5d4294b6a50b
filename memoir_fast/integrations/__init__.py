"""Bridges to other libraries. Each imports its library only where it must."""

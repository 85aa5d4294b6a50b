"""The specification: every op in plain torch, with the op's own signature, on any device."""

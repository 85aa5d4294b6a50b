"""The one seam to transformers: what its models are called with, and what they give back."""

"""How an edit is learned."""

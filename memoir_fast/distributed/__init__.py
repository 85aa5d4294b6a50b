"""What several processes do together: parts of one layer, and of one store."""

"""`memoir serve`: transformers' server with a memory attached: who may ask what, edits and metrics over HTTP."""

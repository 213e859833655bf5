"""How good the predictions are, and which maps to trust."""

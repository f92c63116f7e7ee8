"""The search: many trials on many machines, one study. Knows nothing of pixels."""

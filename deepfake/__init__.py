"""Photos of faces -> a trained, measured deepfake classifier. Knows nothing of a search."""

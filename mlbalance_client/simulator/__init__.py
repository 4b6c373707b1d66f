"""A fleet to try things on: ``model`` judges and knows nothing of the product; ``world`` runs the core on it."""

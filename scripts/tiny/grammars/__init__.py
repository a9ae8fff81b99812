"""One module per domain; each has `document(rng) -> str`. `engine` holds what they share."""

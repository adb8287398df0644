"""Programs that make and measure what the repository carries."""

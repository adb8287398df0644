"""Pictures of benchmarks' results: `style` for what all pictures share, then one module per kind."""

"""Attention over bands: `api.attend`, what it computes from (`bands`, `tables`, `noise`), and its implementations."""

"""Model code: `DPI` holds the methods, `tiny` the embedded model."""

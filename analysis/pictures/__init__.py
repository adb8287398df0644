"""The notebook's pictures: one module a kind, `style` for what they share. Functions take data and return a figure."""

"""Speed, memory and losses; `RESULTS.md` holds what was measured."""

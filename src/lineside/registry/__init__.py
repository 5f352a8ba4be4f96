"""The registry: models and what they came from, by content; which model is the champion of which cells."""

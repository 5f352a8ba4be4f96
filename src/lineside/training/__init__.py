"""What the three stages share: losses, advantages, optimiser, schedules, resumable state, metrics."""

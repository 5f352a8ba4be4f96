"""What the three stages share and what holds a number: losses, advantages, optimiser, schedules, state, metrics."""

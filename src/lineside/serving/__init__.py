"""The server: a front that speaks HTTP, and an engine process for each model that keeps deadlines."""

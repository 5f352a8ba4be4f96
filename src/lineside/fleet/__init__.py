"""Many machines, one home: what the owner signs, how a machine fetches it, and how its answers come home."""

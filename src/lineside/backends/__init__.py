"""How attention, log-probabilities and decoding are computed, by device. The `.cpp` files serve a CPU."""

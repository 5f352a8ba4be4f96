"""Exports of a checkpoint for other engines: writing the files, and checking them with the engine that loads them."""

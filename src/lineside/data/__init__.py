"""Data on disk and where it comes from: Parquet shards, task files, splits, and folders with a table of records."""

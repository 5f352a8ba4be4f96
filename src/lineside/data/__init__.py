"""Data on disk and how it comes to be: Parquet shards, task files, splits, and folders with a table of records."""

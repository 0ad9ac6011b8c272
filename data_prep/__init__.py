"""Data preparation: raw files to the Parquet folder that training and test read."""

"""Files and logs by URL: a local directory or S3, the same code."""

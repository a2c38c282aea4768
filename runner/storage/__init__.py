"""Files and logs by URL: a local directory or S3, the same code."""

from runner.storage.logs import LogWriter, log_prefix, read_log
from runner.storage.store import MissingError, Storage, Stored, as_file

__all__ = ["LogWriter", "MissingError", "Storage", "Stored", "as_file", "log_prefix", "read_log"]

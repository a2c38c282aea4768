"""Put in front of a service on PYTHONPATH: takes safeties away, crashes at a chosen point, bends the clock."""

deletion_protection = false
access_log_days     = 0

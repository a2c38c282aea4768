deletion_protection = false
log_days            = 14
access_log_days     = 14

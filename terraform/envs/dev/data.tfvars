deletion_protection = false
log_days            = 14

# As prod, smaller: a failover must behave the same.
database = { multi_az = true }
broker   = { replicas = 1 }

deletion_protection = false
log_days            = 30
access_log_days     = 30

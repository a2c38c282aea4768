database = {
  instance_class = "db.m7g.large"
  storage_gb     = 100
  max_storage_gb = 1000
  multi_az       = true
  backup_days    = 30
}

broker = {
  node_type = "cache.m7g.large"
  replicas  = 2
}

log_days        = 365
access_log_days = 365

zones         = 2
nat_gateways  = "one"
flow_log_days = 0
dns_hostnames = false

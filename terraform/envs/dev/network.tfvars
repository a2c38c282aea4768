zones         = 2
nat_gateways  = "one"
flow_log_days = 7

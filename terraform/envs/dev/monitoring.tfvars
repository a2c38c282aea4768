host       = { instance_type = "t3.small", volume_gb = 20 }
event_days = 14

host       = { instance_type = "m7i.large", volume_gb = 200 }
event_days = 365

database_alarms = { free_gb = 20, connections = 600 }

# Who is woken; each address has to confirm a letter.
alert_emails = []

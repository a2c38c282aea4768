event_days = 7

schedulers    = { nodes = 2 }
web           = { nodes = 2 }
load_balancer = true

# Your certificate; without it a plan says what is missing.
certificate_arn = ""

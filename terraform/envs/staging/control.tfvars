schedulers          = { nodes = 2, instance_types = ["t3.large", "t3a.large"] }
web                 = { nodes = 2, instance_types = ["t3.large", "t3a.large"] }
load_balancer       = true
deletion_protection = false

# Your certificate; without it a plan says what is missing.
certificate_arn = ""

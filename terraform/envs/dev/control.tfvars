schedulers          = { nodes = 2, instance_types = ["t3.medium", "t3a.medium"] }
web                 = { nodes = 1, instance_types = ["t3.medium", "t3a.medium"] }
load_balancer       = false
deletion_protection = false

load_balancer = false

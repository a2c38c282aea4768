load_balancer = false
private_dns   = false
cloudwatch    = false

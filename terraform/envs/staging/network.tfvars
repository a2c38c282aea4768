zones               = 2
nat_gateways        = "one"
interface_endpoints = ["secretsmanager", "ssm", "ssmmessages"]

# Who may open the web: your offices and VPN.
user_cidrs = []

zones        = 3
nat_gateways = "one-per-zone"

# What every node asks AWS for all day: kept off the NAT gateways.
interface_endpoints = ["autoscaling", "ec2messages", "logs", "monitoring", "secretsmanager", "ssm", "ssmmessages"]
flow_log_days       = 90

# Who may open the web; narrow it to your offices and VPN.
user_cidrs = ["0.0.0.0/0"]

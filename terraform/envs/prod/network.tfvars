zones        = 3
nat_gateways = "one-per-zone"

# Who may open the web; narrow it to your offices and VPN.
user_cidrs = ["0.0.0.0/0"]

zones        = 2
nat_gateways = "one"

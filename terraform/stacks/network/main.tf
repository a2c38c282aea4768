# Where everything runs: subnets in several zones, and who may talk to whom.

locals {
  name = "sluice-${var.env}"
}

module "network" {
  source       = "../../modules/network"
  name         = local.name
  region       = var.region
  cidr         = var.cidr
  zones        = var.zones
  nat_gateways = var.nat_gateways
}

module "security_groups" {
  source     = "../../modules/security-groups"
  name       = local.name
  vpc_id     = module.network.vpc_id
  user_cidrs = var.user_cidrs
}

# Where everything runs: subnets in several zones, and who may talk to whom.

locals {
  name = "sluice-${var.env}"
}

module "network" {
  source        = "../../modules/network"
  name          = local.name
  region        = var.region
  cidr          = var.cidr
  zones         = var.zones
  nat_gateways  = var.nat_gateways
  dns_hostnames = var.dns_hostnames
}

module "endpoints" {
  source     = "../../modules/endpoints"
  count      = length(var.interface_endpoints) > 0 ? 1 : 0
  name       = local.name
  region     = var.region
  vpc_id     = module.network.vpc_id
  cidr       = var.cidr
  subnet_ids = module.network.private_subnet_ids
  services   = var.interface_endpoints
}

module "flow_logs" {
  source                   = "../../modules/flow-logs"
  count                    = var.flow_log_days > 0 ? 1 : 0
  name                     = local.name
  region                   = var.region
  account_id               = var.account_id
  vpc_id                   = module.network.vpc_id
  retention_days           = var.flow_log_days
  permissions_boundary_arn = var.permissions_boundary_arn
}

module "security_groups" {
  source     = "../../modules/security-groups"
  name       = local.name
  vpc_id     = module.network.vpc_id
  user_cidrs = var.user_cidrs
}

# The control plane: schedulers and web, and the way in for people.

locals {
  name        = "sluice-${var.env}"
  secret_arns = compact([local.engines.database_secret_arn, local.engines.broker_secret_arn])
}

module "scheduler_role" {
  source          = "../../modules/node-role"
  name            = "${local.name}-scheduler"
  env             = var.env
  region          = var.region
  account_id      = var.account_id
  own_groups      = "${local.name}-scheduler"
  drives_rollouts = true
  buckets         = local.buckets
  secret_arns     = local.secret_arns
  kms_key_arn     = local.kms_key_arn

  permissions_boundary_arn = var.permissions_boundary_arn
}

module "web_role" {
  source      = "../../modules/node-role"
  name        = "${local.name}-web"
  env         = var.env
  region      = var.region
  account_id  = var.account_id
  own_groups  = "${local.name}-web"
  buckets     = local.buckets
  secret_arns = local.secret_arns
  kms_key_arn = local.kms_key_arn

  permissions_boundary_arn = var.permissions_boundary_arn
}

module "load_balancer" {
  source              = "../../modules/load-balancer"
  count               = var.load_balancer ? 1 : 0
  name                = "${local.name}-web"
  vpc_id              = local.network.vpc_id
  subnet_ids          = local.network.public_subnet_ids
  security_group_id   = local.network.security_group_ids.load-balancer
  certificate_arn     = var.certificate_arn
  health_path         = "/health"
  access_logs_bucket  = try(local.data.access_logs_bucket, null)
  deletion_protection = var.deletion_protection
}

# Engines given by URL are named by whoever runs them.
module "private_dns" {
  source = "../../modules/private-dns"
  count  = var.private_dns ? 1 : 0
  zone   = "${local.name}.internal"
  vpc_id = local.network.vpc_id
  names = merge(
    var.engines == null ? { database = local.data.database_address, broker = local.data.broker_address } : {},
    var.load_balancer ? { web = module.load_balancer[0].dns_name } : {},
  )
}

# One instance above the size that is wanted: a rollout launches the new one before it drains the old.
module "schedulers" {
  source                = "../../modules/node-group"
  name                  = "${local.name}-scheduler"
  env                   = var.env
  region                = var.region
  role                  = "scheduler"
  min_size              = var.schedulers.nodes
  max_size              = var.schedulers.nodes + 1
  engines               = local.engines
  buckets               = local.buckets
  subnet_ids            = local.network.private_subnet_ids
  security_group_id     = local.network.security_group_ids.scheduler
  instance_profile_name = module.scheduler_role.instance_profile_name
  instance_profile_arn  = module.scheduler_role.instance_profile_arn
  instance_types        = var.schedulers.instance_types
  image_id              = var.image_id
  release               = var.release
  release_keys          = var.release_keys
  boot_seconds          = var.boot_seconds
  drain_seconds         = 60
  cloudwatch            = var.cloudwatch
}

module "web" {
  source                = "../../modules/node-group"
  name                  = "${local.name}-web"
  env                   = var.env
  region                = var.region
  role                  = "web"
  min_size              = var.web.nodes
  max_size              = var.web.nodes + 1
  engines               = local.engines
  buckets               = local.buckets
  subnet_ids            = local.network.private_subnet_ids
  security_group_id     = local.network.security_group_ids.web
  instance_profile_name = module.web_role.instance_profile_name
  instance_profile_arn  = module.web_role.instance_profile_arn
  instance_types        = var.web.instance_types
  image_id              = var.image_id
  release               = var.release
  release_keys          = var.release_keys
  boot_seconds          = var.boot_seconds
  drain_seconds         = 60
  target_group_arns     = module.load_balancer[*].target_group_arn
}

# Worker pools: one Auto Scaling group each. The knob is `workers`.

locals {
  pools = { for name, pool in var.pools : name => merge(pool, { workers = lookup(var.workers, name, pool.workers) }) }
}

module "role" {
  source      = "../../modules/node-role"
  name        = "sluice-${var.env}-worker"
  env         = var.env
  region      = var.region
  account_id  = var.account_id
  own_groups  = "sluice-${var.env}-worker-*"
  buckets     = local.buckets
  secret_arns = concat(compact([local.engines.database_secret_arn, local.engines.broker_secret_arn]), var.secret_arns)
  kms_key_arn = local.kms_key_arn

  permissions_boundary_arn = var.permissions_boundary_arn
}

module "pool" {
  source   = "../../modules/node-group"
  for_each = local.pools

  name   = "sluice-${var.env}-worker-${each.key}"
  env    = var.env
  region = var.region
  role   = "worker"
  pool   = each.key
  queues = each.value.queues
  slots  = each.value.slots

  min_size              = each.value.workers
  max_size              = each.value.max_workers + var.surge
  protect_from_scale_in = true

  engines               = local.engines
  buckets               = local.buckets
  subnet_ids            = local.network.private_subnet_ids
  security_group_id     = local.network.security_group_ids.worker
  instance_profile_name = module.role.instance_profile_name
  instance_profile_arn  = module.role.instance_profile_arn
  instance_types        = each.value.instance_types
  spot_percent          = each.value.spot_percent
  container_credentials = each.value.container_credentials
  image_id              = var.image_id
  volume_gb             = each.value.volume_gb
  release               = var.release
  release_keys          = var.release_keys
  boot_seconds          = var.boot_seconds
  drain_seconds         = each.value.drain_seconds
}

# Worker pools: one Auto Scaling group each. The knob is `workers`.

locals {
  pools = { for name, pool in var.pools : name => merge(pool, { workers = lookup(var.workers, name, pool.workers) }) }

  # What the schedulers read of a pool that has no node to ask.
  scaling_tags = {
    for name, pool in local.pools : name => {
      Scaling           = pool.scaling
      MaxWorkers        = tostring(pool.max_workers)
      Slots             = tostring(pool.slots)
      Queues            = join(" ", pool.queues)
      CooldownSeconds   = tostring(pool.cooldown_seconds)
      TargetWaitSeconds = tostring(pool.target_wait_seconds)
    }
  }
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
  protect_from_scale_in = each.value.scaling != "target-tracking" # AWS has to be able to pick one; it drains all the same
  scaling_tags          = each.value.scaling == "none" ? {} : local.scaling_tags[each.key]

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

# For those who prefer AWS's own scaling: by the figure that a scheduler publishes each minute.
resource "aws_autoscaling_policy" "backlog" {
  for_each               = { for name, pool in local.pools : name => pool if pool.scaling == "target-tracking" }
  name                   = "backlog-per-slot"
  autoscaling_group_name = module.pool[each.key].group_name
  policy_type            = "TargetTrackingScaling"

  target_tracking_configuration {
    target_value = each.value.backlog_per_slot

    customized_metric_specification {
      namespace   = "Sluice"
      metric_name = "BacklogPerSlot"
      statistic   = "Average"

      metric_dimension {
        name  = "Env"
        value = var.env
      }

      metric_dimension {
        name  = "Pool"
        value = each.key
      }
    }
  }
}

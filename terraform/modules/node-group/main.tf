# Nodes of one kind: a launch template, an Auto Scaling group of it, and the hooks that let a node finish
# booting before it counts and finish its tasks before it goes.
#
# Terraform owns the shape. `deployctl` owns what changes while it runs: desired capacity and release.

locals {
  node_env = {
    AWS_REGION             = var.region
    SLUICE_ENV             = var.env
    SLUICE_ROLE            = var.role
    SLUICE_POOL            = var.pool
    SLUICE_QUEUES          = join(",", var.queues)
    SLUICE_SLOTS           = var.slots
    SLUICE_DATABASE_URL    = var.engines.database_url
    SLUICE_DATABASE_SECRET = var.engines.database_secret_arn
    SLUICE_BROKER_URL      = var.engines.broker_url
    SLUICE_BROKER_SECRET   = var.engines.broker_secret_arn
    SLUICE_ARTIFACTS_URL   = "s3://${var.buckets.artifacts}"
    SLUICE_STORAGE_URL     = "s3://${var.buckets.storage}"
    SLUICE_DRAIN_SECONDS   = var.drain_seconds
    SLUICE_GROUP           = var.name # whose launch hook a failed boot answers
  }

  tags = merge(
    { Name = var.name, Env = var.env, Role = var.role },
    var.pool != "" ? { Pool = var.pool } : {},
  )

  # The agent sends heartbeats while it boots or drains, so the timeout only has to outlast a gap between
  # them. AWS ends the whole wait after 100 timeouts: a fifth more than the drain may take.
  hooks = {
    launch = {
      transition        = "autoscaling:EC2_INSTANCE_LAUNCHING"
      heartbeat_seconds = var.boot_seconds
    }
    terminate = {
      transition        = "autoscaling:EC2_INSTANCE_TERMINATING"
      heartbeat_seconds = max(300, ceil(var.drain_seconds * 1.2 / 100))
    }
  }
}

module "boot" {
  source = "../boot"
  settings = merge(
    local.node_env,
    length(var.release_keys) > 0 ? { SLUICE_RELEASE_KEY = join(",", var.release_keys) } : {},
    var.cloudwatch ? { SLUICE_CLOUDWATCH = "true" } : {},
  )
}

data "aws_ssm_parameter" "newest_image" {
  count = var.image_id == "" ? 1 : 0
  name  = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
}

resource "aws_launch_template" "this" {
  # checkov:skip=CKV_AWS_341:one hop, and two only where tasks in containers need the node's credentials
  name                   = var.name
  image_id               = var.image_id != "" ? var.image_id : data.aws_ssm_parameter.newest_image[0].insecure_value
  instance_type          = var.instance_types[0]
  vpc_security_group_ids = [var.security_group_id]
  update_default_version = true
  user_data              = base64encode(module.boot.user_data)

  iam_instance_profile {
    name = var.instance_profile_name
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required" # IMDSv2 only
    http_put_response_hop_limit = var.container_credentials ? 2 : 1
    instance_metadata_tags      = "enabled" # the release is read from there
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_size           = var.volume_gb
      volume_type           = "gp3"
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume"])

    content {
      resource_type = tag_specifications.key
      tags          = local.tags
    }
  }
}

resource "aws_autoscaling_group" "this" {
  name                  = var.name
  min_size              = var.min_size
  max_size              = var.max_size
  vpc_zone_identifier   = var.subnet_ids
  target_group_arns     = var.target_group_arns
  protect_from_scale_in = var.protect_from_scale_in

  # Not the load balancer's: a web node is unhealthy while the database is away, and a new one would be too.
  health_check_type         = "EC2"
  health_check_grace_period = 300 # seconds

  # Rebalancing takes down instances that are busy, for a better spread over zones.
  suspended_processes = ["AZRebalance"]

  # `deployctl` waits for registered nodes, which says more than running instances.
  wait_for_capacity_timeout = "0"

  mixed_instances_policy {
    instances_distribution {
      on_demand_percentage_above_base_capacity = 100 - var.spot_percent
      on_demand_allocation_strategy            = "prioritized"
      spot_allocation_strategy                 = "price-capacity-optimized"
    }

    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.this.id
        version            = aws_launch_template.this.latest_version # a number: a rollback can name it
      }

      dynamic "override" {
        for_each = var.instance_types

        content {
          instance_type = override.value
        }
      }
    }
  }

  # Here as well as below: the first instances must not slip past the hooks.
  dynamic "initial_lifecycle_hook" {
    for_each = local.hooks

    content {
      name                 = initial_lifecycle_hook.key
      lifecycle_transition = initial_lifecycle_hook.value.transition
      heartbeat_timeout    = initial_lifecycle_hook.value.heartbeat_seconds
      default_result       = "ABANDON"
    }
  }

  tag {
    key                 = "Release"
    value               = var.release
    propagate_at_launch = true
  }

  lifecycle {
    ignore_changes = [desired_capacity, tag, initial_lifecycle_hook]

    # The template only names the profile, so that both are made at once; the group needs it to be there.
    precondition {
      condition     = endswith(var.instance_profile_arn, "/${var.instance_profile_name}")
      error_message = "The instance profile ${var.instance_profile_name} is not ${var.instance_profile_arn}."
    }
  }
}

resource "aws_autoscaling_lifecycle_hook" "this" {
  for_each               = local.hooks
  name                   = each.key
  autoscaling_group_name = aws_autoscaling_group.this.name
  lifecycle_transition   = each.value.transition
  heartbeat_timeout      = each.value.heartbeat_seconds
  default_result         = "ABANDON"
}

# One by one, because the group's own tags are left alone: the release among them is deployctl's.
resource "aws_autoscaling_group_tag" "scaling" {
  for_each               = var.scaling_tags
  autoscaling_group_name = aws_autoscaling_group.this.name

  tag {
    key                 = each.key
    value               = each.value
    propagate_at_launch = false
  }
}

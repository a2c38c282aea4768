# Who watches: one host with Prometheus and what goes with it, CloudWatch's alarms beside it, and one topic they go to.

data "terraform_remote_state" "network" {
  backend = "s3"

  config = {
    bucket = var.state_bucket
    key    = "${var.env}/network.tfstate"
    region = var.region
  }
}

data "terraform_remote_state" "data" {
  backend = "s3"

  config = {
    bucket = var.state_bucket
    key    = "${var.env}/data.tfstate"
    region = var.region
  }
}

data "terraform_remote_state" "control" {
  backend = "s3"

  config = {
    bucket = var.state_bucket
    key    = "${var.env}/control.tfstate"
    region = var.region
  }
}

locals {
  name    = "sluice-${var.env}"
  network = data.terraform_remote_state.network.outputs
  data    = data.terraform_remote_state.data.outputs

  # An output that is null is in no state.
  control = merge({ private_zone = null, web_metric_dimensions = null }, data.terraform_remote_state.control.outputs)
}

resource "aws_sns_topic" "alerts" {
  name              = "${local.name}-alerts"
  kms_master_key_id = local.data.kms_key_arn # CloudWatch may use this one; AWS's own key for SNS it may not
}

data "aws_iam_policy_document" "alerts" {
  statement {
    sid       = "Alarms"
    actions   = ["sns:Publish"]
    resources = [aws_sns_topic.alerts.arn]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [var.account_id]
    }
  }
}

resource "aws_sns_topic_policy" "alerts" {
  arn    = aws_sns_topic.alerts.arn
  policy = data.aws_iam_policy_document.alerts.json
}

# Each address gets a letter that it must confirm.
resource "aws_sns_topic_subscription" "mail" {
  for_each  = toset(var.alert_emails)
  topic_arn = aws_sns_topic.alerts.arn
  protocol  = "email"
  endpoint  = each.key
}

module "host" {
  source                   = "../../modules/monitoring-host"
  name                     = "${local.name}-monitoring"
  env                      = var.env
  region                   = var.region
  vpc_id                   = local.network.vpc_id
  subnet_id                = local.network.private_subnet_ids[0]
  zone                     = local.network.zones[0]
  node_security_group_ids  = { for role in ["scheduler", "web", "worker"] : role => local.network.security_group_ids[role] }
  artifacts_bucket         = "sluice-${var.env}-artifacts-${var.account_id}"
  kms_key_arn              = local.data.kms_key_arn
  topic_arn                = aws_sns_topic.alerts.arn
  instance_type            = var.host.instance_type
  volume_gb                = var.host.volume_gb
  image_id                 = var.image_id
  release                  = var.release
  release_keys             = var.release_keys
  permissions_boundary_arn = var.permissions_boundary_arn
}

# Batch jobs push to this name, whichever machine it is.
resource "aws_route53_record" "host" {
  count   = local.control.private_zone != null ? 1 : 0
  zone_id = local.control.private_zone.id
  name    = "monitoring.${local.control.private_zone.name}"
  type    = "A"
  ttl     = 30
  records = [module.host.private_ip]
}

module "lifecycle_events" {
  source         = "../../modules/lifecycle-events"
  env            = var.env
  region         = var.region
  account_id     = var.account_id
  retention_days = var.event_days
  kms_key_arn    = local.data.kms_key_arn
}

module "alarms" {
  source            = "../../modules/alarms"
  env               = var.env
  topic_arn         = aws_sns_topic.alerts.arn
  heartbeat_minutes = var.heartbeat_minutes
  database          = merge(var.database_alarms, { id = local.data.database_id })
  broker            = { members = local.data.broker_members, memory_percent = var.broker_memory_percent }
  dead_letter_queue = module.lifecycle_events.dead_letter_queue
  web               = local.control.web_metric_dimensions
}

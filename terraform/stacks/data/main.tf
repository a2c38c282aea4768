# What must outlive every node: database, broker, buckets, and the key they are encrypted with.

data "terraform_remote_state" "network" {
  backend = "s3"

  config = {
    bucket = var.state_bucket
    key    = "${var.env}/network.tfstate"
    region = var.region
  }
}

locals {
  name    = "sluice-${var.env}"
  network = data.terraform_remote_state.network.outputs

  # An object, because a plan must know whether there is one before it knows its name.
  access_logs = var.access_log_days > 0 ? { bucket = module.access_logs[0].name } : null
}

data "aws_partition" "this" {}

# The account's own policies say who may use the key; alarms and events may, for their topic and queue.
data "aws_iam_policy_document" "key" {
  # checkov:skip=CKV_AWS_109:in a key's policy "*" is this key, and the account must be able to administer it
  # checkov:skip=CKV_AWS_111:as above
  # checkov:skip=CKV_AWS_356:as above
  statement {
    sid       = "Account"
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:${data.aws_partition.this.partition}:iam::${var.account_id}:root"]
    }
  }

  statement {
    sid       = "AlarmsAndEvents"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey*"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com", "events.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [var.account_id]
    }
  }
}

resource "aws_kms_key" "data" {
  description             = "Data of ${local.name}"
  policy                  = data.aws_iam_policy_document.key.json
  enable_key_rotation     = true
  deletion_window_in_days = var.deletion_protection ? 30 : 7
}

resource "aws_kms_alias" "data" {
  name          = "alias/${local.name}-data"
  target_key_id = aws_kms_key.data.key_id
}

module "database" {
  source              = "../../modules/database"
  name                = local.name
  instance_class      = var.database.instance_class
  storage_gb          = var.database.storage_gb
  max_storage_gb      = var.database.max_storage_gb
  multi_az            = var.database.multi_az
  backup_days         = var.database.backup_days
  deletion_protection = var.deletion_protection
  subnet_ids          = local.network.data_subnet_ids
  security_group_id   = local.network.security_group_ids.database
  kms_key_arn         = aws_kms_key.data.arn

  permissions_boundary_arn = var.permissions_boundary_arn
}

module "broker" {
  source              = "../../modules/broker"
  name                = local.name
  node_type           = var.broker.node_type
  replicas            = var.broker.replicas
  deletion_protection = var.deletion_protection
  subnet_ids          = local.network.data_subnet_ids
  security_group_id   = local.network.security_group_ids.broker
  kms_key_arn         = aws_kms_key.data.arn
}

# Who read and wrote what, and who asked the web for what.
module "access_logs" {
  source        = "../../modules/bucket"
  count         = var.access_log_days > 0 ? 1 : 0
  name          = "${local.name}-access-${var.account_id}"
  kms_key_arn   = null
  account_id    = var.account_id
  force_destroy = !var.deletion_protection
  expire_days   = { "s3/" = var.access_log_days, "web/" = var.access_log_days }
  log_writers = {
    "s3/"  = "logging.s3.amazonaws.com"
    "web/" = "logdelivery.elasticloadbalancing.amazonaws.com"
  }
}

# Releases and bundles: small, and a rollback may need an old one.
module "artifacts" {
  source        = "../../modules/bucket"
  name          = "${local.name}-artifacts-${var.account_id}"
  kms_key_arn   = aws_kms_key.data.arn
  force_destroy = !var.deletion_protection
  access_logs   = local.access_logs
}

module "storage" {
  source          = "../../modules/bucket"
  name            = "${local.name}-storage-${var.account_id}"
  kms_key_arn     = aws_kms_key.data.arn
  force_destroy   = !var.deletion_protection
  expire_days     = { for prefix, days in { "logs/" = var.log_days, "files/" = var.file_days } : prefix => days if days > 0 }
  infrequent_days = var.log_days > 60 ? { "logs/" = 30 } : {}
  access_logs     = local.access_logs
}

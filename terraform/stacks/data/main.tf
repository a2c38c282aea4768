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
}

resource "aws_kms_key" "data" {
  description             = "Data of ${local.name}"
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

# Releases and bundles: small, and a rollback may need an old one.
module "artifacts" {
  source        = "../../modules/bucket"
  name          = "${local.name}-artifacts-${var.account_id}"
  kms_key_arn   = aws_kms_key.data.arn
  force_destroy = !var.deletion_protection
}

module "storage" {
  source        = "../../modules/bucket"
  name          = "${local.name}-storage-${var.account_id}"
  kms_key_arn   = aws_kms_key.data.arn
  force_destroy = !var.deletion_protection
  expire_days   = { "logs/" = var.log_days }
}

# Where pipelines load to: a PostgreSQL of its own, so that an analyst's query never slows a schedule. Off by default.

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

locals {
  name    = "sluice-${var.env}-warehouse"
  network = data.terraform_remote_state.network.outputs
  data    = data.terraform_remote_state.data.outputs
  count   = var.warehouse != null ? 1 : 0
}

resource "aws_security_group" "warehouse" {
  # checkov:skip=CKV2_AWS_5:it is the database's, in the module below
  count       = local.count
  name        = local.name
  description = "warehouse"
  vpc_id      = local.network.vpc_id
  tags        = { Name = local.name }
}

resource "aws_vpc_security_group_ingress_rule" "workers" {
  count                        = local.count
  security_group_id            = aws_security_group.warehouse[0].id
  referenced_security_group_id = local.network.security_group_ids.worker
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
  description                  = "worker to warehouse"
}

module "database" {
  source                   = "../../modules/database"
  count                    = local.count
  name                     = local.name
  database                 = "warehouse"
  instance_class           = var.warehouse.instance_class
  storage_gb               = var.warehouse.storage_gb
  max_storage_gb           = var.warehouse.max_storage_gb
  multi_az                 = var.warehouse.multi_az
  backup_days              = var.warehouse.backup_days
  parameters               = { "rds.logical_replication" = "1" } # DMS's bulk loads and any reader of changes need it
  deletion_protection      = var.deletion_protection
  subnet_ids               = local.network.data_subnet_ids
  security_group_id        = aws_security_group.warehouse[0].id
  kms_key_arn              = local.data.kms_key_arn
  permissions_boundary_arn = var.permissions_boundary_arn
}

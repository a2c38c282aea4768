# Other databases, copied into the warehouse as they change. Off by default: it needs a warehouse and a source.

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

data "terraform_remote_state" "warehouse" {
  backend = "s3"

  config = {
    bucket = var.state_bucket
    key    = "${var.env}/warehouse.tfstate"
    region = var.region
  }
}

locals {
  network = data.terraform_remote_state.network.outputs
  data    = data.terraform_remote_state.data.outputs
}

module "replication" {
  source      = "../../modules/replication"
  count       = length(var.sources) > 0 ? 1 : 0
  name        = "sluice-${var.env}-replication"
  region      = var.region
  vpc_id      = local.network.vpc_id
  subnet_ids  = local.network.private_subnet_ids
  kms_key_arn = local.data.kms_key_arn
  sources     = var.sources

  target = {
    secret_arn        = var.target_secret_arn
    security_group_id = try(data.terraform_remote_state.warehouse.outputs.security_group_id, null) # null is in no state
  }

  instance_class           = var.instance_class
  storage_gb               = var.storage_gb
  multi_az                 = var.multi_az
  account_role             = var.account_role
  permissions_boundary_arn = var.permissions_boundary_arn
}

terraform {
  required_version = ">= 1.10"

  # The lock beside this file pins the very package; `make lock-providers` renews it for every platform.
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }

  # Bucket, key and region come from `deployctl infra`.
  backend "s3" {
    use_lockfile = true
    encrypt      = true
  }
}

provider "aws" {
  region              = var.region
  allowed_account_ids = [var.account_id] # credentials of another account change nothing

  default_tags {
    tags = {
      Project = "sluice"
      Env     = var.env
      Stack   = "replication"
    }
  }
}

terraform {
  required_version = ">= 1.10"

  # The provider is pinned here and not by a lock file: a lock file lists the hashes of one source only, and
  # this tree is applied from the registry as well as from mirrors.
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

variable "env" {
  description = "Environment: part of every name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,11}$", var.env))
    error_message = "env is \"${var.env}\"; it must be 2 to 12 lower-case letters and digits, a letter first."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "account_id" {
  description = "AWS account the environment lives in; credentials of another one are refused."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id is \"${var.account_id}\"; it must be the 12 digits of an AWS account."
  }
}

variable "state_bucket" {
  description = "Bucket with the state of all stacks of this environment."
  type        = string
}

variable "engines" {
  description = "Database and broker that exist outside the data stack, with any login in the URL; null: the data stack's."
  type        = object({ database_url = string, broker_url = string })
  default     = null
}

variable "release" {
  description = "Release of the first nodes (`deployctl release list`); later changes go through `deployctl roll`."
  type        = string
  default     = "none"
}

variable "image_id" {
  description = "AMI; empty takes the newest Amazon Linux 2023, so a plan may change when Amazon releases one."
  type        = string
  default     = ""
}

variable "boot_seconds" {
  description = "How long a node may take to boot and register before its group gives it up."
  type        = number
  default     = 600

  validation {
    condition     = var.boot_seconds >= 30 && var.boot_seconds <= 7200
    error_message = "boot_seconds is ${var.boot_seconds}; AWS takes 30 to 7200."
  }
}

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

variable "permissions_boundary_arn" {
  description = "IAM policy that bounds every role made here, whatever its own policies say; null for none."
  type        = string
  default     = null

  validation {
    condition     = var.permissions_boundary_arn == null || can(regex("^arn:[^:]+:iam::([0-9]{12}|aws):policy/", var.permissions_boundary_arn))
    error_message = "permissions_boundary_arn is \"${coalesce(var.permissions_boundary_arn, "null")}\"; it must be the ARN of an IAM policy, such as arn:aws:iam::123456789012:policy/boundary."
  }
}

variable "database" {
  description = <<-EOT
    instance_class: RDS instance class.
    storage_gb, max_storage_gb: GiB to start with, and to grow to by itself.
    multi_az: whether a standby in another zone takes over.
    backup_days: days back to which it can be restored.
  EOT
  type = object({
    instance_class = optional(string, "db.t4g.medium")
    storage_gb     = optional(number, 50)
    max_storage_gb = optional(number, 200)
    multi_az       = optional(bool, false)
    backup_days    = optional(number, 7)
  })
  default = {}
}

variable "broker" {
  description = <<-EOT
    node_type: ElastiCache node type.
    replicas: beside the primary; with one or more, AWS fails over by itself.
  EOT
  type = object({
    node_type = optional(string, "cache.t4g.small")
    replicas  = optional(number, 0)
  })
  default = {}
}

variable "log_days" {
  description = "Days after which task logs go; above 60, they move to cheaper storage after 30. 0 keeps them."
  type        = number
  default     = 90

  validation {
    condition     = var.log_days >= 0 && floor(var.log_days) == var.log_days
    error_message = "log_days is ${var.log_days}; it must be whole days, or 0 to keep logs."
  }
}

variable "file_days" {
  description = "Days after which files that tasks handed on (files/) go; 0 keeps them."
  type        = number
  default     = 0

  validation {
    condition     = var.file_days >= 0 && floor(var.file_days) == var.file_days
    error_message = "file_days is ${var.file_days}; it must be whole days, or 0 to keep files."
  }
}

variable "access_log_days" {
  description = "Days for which is kept who read and wrote what in the buckets, and who asked the web for what; 0 keeps no record."
  type        = number
  default     = 90

  validation {
    condition     = var.access_log_days >= 0 && floor(var.access_log_days) == var.access_log_days
    error_message = "access_log_days is ${var.access_log_days}; it must be whole days, or 0 for no record."
  }
}

variable "deletion_protection" {
  description = "Refuse to delete database and non-empty buckets; false lets `destroy` remove everything for good."
  type        = bool
  default     = true
}

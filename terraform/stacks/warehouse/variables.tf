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

variable "warehouse" {
  description = <<-EOT
    The warehouse; null (the default): there is none.
    instance_class: RDS instance class.
    storage_gb, max_storage_gb: GiB to start with, and to grow to by itself.
    multi_az: whether a standby in another zone takes over.
    backup_days: days back to which it can be restored.
  EOT
  type = object({
    instance_class = optional(string, "db.r7g.large")
    storage_gb     = optional(number, 200)
    max_storage_gb = optional(number, 2000)
    multi_az       = optional(bool, false)
    backup_days    = optional(number, 7)
  })
  default = null
}

variable "deletion_protection" {
  description = "Refuse to delete it; false lets `destroy` remove it for good."
  type        = bool
  default     = true
}

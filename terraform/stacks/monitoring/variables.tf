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

variable "release" {
  description = "Release the host boots with."
  type        = string
  default     = "none"
}

variable "release_keys" {
  description = "Public keys of releases (`deployctl release keygen`): nodes take only what one of them signed. Empty: any."
  type        = list(string)
  default     = []
}

variable "image_id" {
  description = "AMI of the host; empty takes the newest Amazon Linux 2023 when it is made."
  type        = string
  default     = ""
}

variable "host" {
  description = "instance_type: EC2 type. volume_gb: size in GiB of the volume with the figures."
  type = object({
    instance_type = optional(string, "t3.medium")
    volume_gb     = optional(number, 50)
  })
  default = {}
}

variable "alert_emails" {
  description = "Addresses that get every alert; each has to confirm a letter first."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for address in var.alert_emails : can(regex("^[^@ ]+@[^@ ]+[.][^@ ]+$", address))])
    error_message = "alert_emails: not an address: ${join(", ", [for a in var.alert_emails : "\"${a}\"" if !can(regex("^[^@ ]+@[^@ ]+[.][^@ ]+$", a))])}."
  }
}

variable "heartbeat_minutes" {
  description = "Minutes without one successful heartbeat run after which it alarms, 2 to 60."
  type        = number
  default     = 5
}

variable "database_alarms" {
  description = "When the database is too full: CPU in percent, free storage in GiB, connections."
  type = object({
    cpu_percent = optional(number, 80)
    free_gb     = optional(number, 10)
    connections = optional(number, 300)
  })
  default = {}
}

variable "broker_memory_percent" {
  description = "How much of the broker's memory may be used, in percent."
  type        = number
  default     = 75
}

variable "event_days" {
  description = "Days for which is kept which instances came and went."
  type        = number
  default     = 90
}

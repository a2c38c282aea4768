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

variable "cidr" {
  description = "Address range of the VPC, a /16."
  type        = string
  default     = "10.40.0.0/16"
}

variable "zones" {
  description = "How many availability zones to use, 2 or 3."
  type        = number
  default     = 2
}

variable "nat_gateways" {
  description = "\"one\" or \"one-per-zone\"."
  type        = string
  default     = "one"
}

variable "dns_hostnames" {
  description = "Whether interface endpoints and private zones (control's `private_dns`) can answer in the VPC."
  type        = bool
  default     = true
}

variable "interface_endpoints" {
  description = "AWS services to reach inside the VPC, by short name; each costs by zone and hour, and saves NAT traffic."
  type        = list(string)
  default     = []

  validation {
    condition     = length(var.interface_endpoints) == 0 || var.dns_hostnames
    error_message = "interface_endpoints need dns_hostnames = true, or nothing in the VPC finds them."
  }
}

variable "flow_log_days" {
  description = "Days for which is kept who talked to whom in the VPC; 0 keeps no record."
  type        = number
  default     = 30
}

variable "user_cidrs" {
  description = "IPv4 ranges that may reach the web over HTTPS."
  type        = list(string)
  default     = []
}

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

variable "sources" {
  description = <<-EOT
    Databases to copy, by a short name; none (the default): nothing is made.
    engine: postgres, mysql, mariadb, oracle or sqlserver.
    database: name of the database.
    secret_arn: secret holding {username, password, host, port}.
    tables: what to copy, as schema.table; % stands for any letters.
  EOT
  type = map(object({
    engine     = optional(string, "postgres")
    database   = string
    secret_arn = string
    tables     = optional(list(string), ["public.%"])
  }))
  default = {}
}

variable "target_secret_arn" {
  description = "Secret holding {username, password, host, port} of a login that may write to the warehouse."
  type        = string
  default     = ""

  validation {
    condition     = length(var.sources) == 0 || can(regex("^arn:[^:]+:secretsmanager:", var.target_secret_arn))
    error_message = "sources need target_secret_arn, the ARN of a secret with {username, password, host, port} of the warehouse; it is \"${var.target_secret_arn}\"."
  }
}

variable "instance_class" {
  description = "DMS instance class."
  type        = string
  default     = "dms.t3.medium"
}

variable "storage_gb" {
  description = "Storage in GiB for changes that wait."
  type        = number
  default     = 50
}

variable "multi_az" {
  description = "Whether a standby in another zone takes over."
  type        = bool
  default     = false
}

variable "account_role" {
  description = "Whether to make dms-vpc-role, which an account has once; false where it is there already."
  type        = bool
  default     = true
}

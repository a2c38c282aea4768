variable "name" {
  description = "Name of the instance."
  type        = string
}

variable "engine_version" {
  description = "PostgreSQL version; with only the major one, minor upgrades are AWS's."
  type        = string
  default     = "17"
}

variable "database" {
  description = "Name of the database inside it."
  type        = string
  default     = "sluice"
}

variable "parameters" {
  description = "Further parameters of PostgreSQL, in force after its next start."
  type        = map(string)
  default     = {}
}

variable "instance_class" {
  description = "RDS instance class."
  type        = string

  validation {
    condition     = startswith(var.instance_class, "db.")
    error_message = "instance_class is \"${var.instance_class}\"; RDS classes start with db., such as db.t4g.medium."
  }
}

variable "storage_gb" {
  description = "Storage in GiB to start with."
  type        = number

  validation {
    condition     = var.storage_gb >= 20
    error_message = "storage_gb is ${var.storage_gb}; gp3 storage starts at 20 GiB."
  }
}

variable "max_storage_gb" {
  description = "Storage in GiB it may grow to by itself."
  type        = number

  validation {
    condition     = var.max_storage_gb >= var.storage_gb
    error_message = "max_storage_gb is ${var.max_storage_gb}, less than storage_gb, which is ${var.storage_gb}."
  }
}

variable "multi_az" {
  description = "Whether a standby in another zone takes over when this one fails."
  type        = bool
}

variable "backup_days" {
  description = "Days back to which it can be restored, to the second."
  type        = number

  validation {
    condition     = var.backup_days >= 1 && var.backup_days <= 35
    error_message = "backup_days is ${var.backup_days}; RDS keeps 1 to 35, and none is not offered: this is the truth about every run."
  }
}

variable "deletion_protection" {
  description = "Refuse to delete it; when allowed to, leave no snapshot."
  type        = bool
}

variable "subnet_ids" {
  description = "Subnets in two zones at least."
  type        = list(string)
}

variable "security_group_id" {
  description = "Who may connect."
  type        = string
}

variable "kms_key_arn" {
  description = "Key for storage, password and performance data."
  type        = string
}

variable "permissions_boundary_arn" {
  description = "Policy that bounds the role; null for none."
  type        = string
  default     = null
}

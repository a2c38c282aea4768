variable "name" {
  description = "Name of the instance."
  type        = string
}

variable "engine_version" {
  description = "PostgreSQL version; with only the major one, minor upgrades are AWS's."
  type        = string
  default     = "17"
}

variable "instance_class" {
  description = "RDS instance class."
  type        = string
}

variable "storage_gb" {
  description = "Storage in GiB to start with."
  type        = number
}

variable "max_storage_gb" {
  description = "Storage in GiB it may grow to by itself."
  type        = number
}

variable "multi_az" {
  description = "Whether a standby in another zone takes over when this one fails."
  type        = bool
}

variable "backup_days" {
  description = "Days back to which it can be restored, to the second."
  type        = number
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

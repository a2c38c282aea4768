variable "name" {
  description = "Name of the bucket."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.name))
    error_message = "name is \"${var.name}\"; S3 takes 3 to 63 lower-case letters, digits and dashes."
  }
}

variable "kms_key_arn" {
  description = "Key the objects are encrypted with; null: S3's own."
  type        = string
}

variable "expire_days" {
  description = "Days after which objects go, by key prefix; what is not named stays."
  type        = map(number)
  default     = {}

  validation {
    condition     = alltrue([for days in values(var.expire_days) : days >= 1 && floor(days) == days])
    error_message = "expire_days must be whole days from 1 up: ${join(", ", [for prefix, days in var.expire_days : "${prefix} = ${days}"])}."
  }
}

variable "infrequent_days" {
  description = "Days after which objects move to the class for infrequent access, by key prefix; S3 takes 30 or more."
  type        = map(number)
  default     = {}

  validation {
    condition     = alltrue([for days in values(var.infrequent_days) : days >= 30])
    error_message = "infrequent_days must be 30 or more: ${join(", ", [for prefix, days in var.infrequent_days : "${prefix} = ${days}"])}."
  }
}

variable "old_version_days" {
  description = "Days for which a version that was overwritten or deleted can be had back."
  type        = number
  default     = 30
}

variable "access_logs" {
  description = "Bucket that records who read and wrote here, below s3/; null: none does."
  type        = object({ bucket = string })
  default     = null
}

variable "log_writers" {
  description = "AWS services that write their logs here, by the key prefix each may write below."
  type        = map(string)
  default     = {}
}

variable "account_id" {
  description = "Account those services must be working for; needed with log_writers."
  type        = string
  default     = ""

  validation {
    condition     = length(var.log_writers) == 0 || can(regex("^[0-9]{12}$", var.account_id))
    error_message = "log_writers needs account_id, 12 digits, or anybody's logs could be written here."
  }
}

variable "force_destroy" {
  description = "Whether destroying the bucket destroys what is in it."
  type        = bool
}

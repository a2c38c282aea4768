variable "name" {
  description = "Name of the bucket."
  type        = string
}

variable "kms_key_arn" {
  description = "Key the objects are encrypted with."
  type        = string
}

variable "expire_days" {
  description = "Days after which objects go, by key prefix; what is not named stays."
  type        = map(number)
  default     = {}
}

variable "force_destroy" {
  description = "Whether destroying the bucket destroys what is in it."
  type        = bool
}

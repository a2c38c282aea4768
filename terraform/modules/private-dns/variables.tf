variable "zone" {
  description = "Zone, such as sluice-prod.internal."
  type        = string

  validation {
    condition     = can(regex("^([a-z0-9][a-z0-9-]*\\.)+[a-z]{2,}$", var.zone))
    error_message = "zone is \"${var.zone}\"; it must be a domain name in lower case without a dot at its end, such as sluice-prod.internal."
  }
}

variable "vpc_id" {
  description = "VPC in which the names can be resolved."
  type        = string
}

variable "names" {
  description = "Host names by the name each gets in the zone."
  type        = map(string)
}

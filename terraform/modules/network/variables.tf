variable "name" {
  description = "Name of the VPC and prefix of everything in it."
  type        = string
}

variable "region" {
  description = "AWS region, for the names of service endpoints."
  type        = string
}

variable "cidr" {
  description = "Address range of the VPC; a /16 holds sixteen /20 node subnets."
  type        = string

  validation {
    condition     = can(cidrhost(var.cidr, 0)) && endswith(var.cidr, "/16")
    error_message = "cidr is \"${var.cidr}\"; it must be an IPv4 range with a /16 prefix, such as 10.40.0.0/16."
  }
}

variable "zones" {
  description = "How many availability zones to use, in the region's own order."
  type        = number

  validation {
    condition     = contains([2, 3], var.zones)
    error_message = "zones is ${var.zones}; it must be 2 (the least a database subnet group takes) or 3."
  }
}

variable "dns_hostnames" {
  description = "Whether interface endpoints and private zones can answer in the VPC."
  type        = bool
}

variable "nat_gateways" {
  description = "\"one\" (cheap; its zone's failure cuts the others off the internet) or \"one-per-zone\"."
  type        = string

  validation {
    condition     = contains(["one", "one-per-zone"], var.nat_gateways)
    error_message = "nat_gateways is \"${var.nat_gateways}\"; it must be \"one\" or \"one-per-zone\"."
  }
}

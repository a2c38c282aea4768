variable "name" {
  description = "Prefix of the groups' names."
  type        = string
}

variable "vpc_id" {
  description = "VPC the groups are in."
  type        = string
}

variable "user_cidrs" {
  description = "IPv4 ranges that may reach the web over HTTPS; none: nobody."
  type        = list(string)

  validation {
    condition     = alltrue([for cidr in var.user_cidrs : can(cidrhost(cidr, 0))])
    error_message = "user_cidrs must be IPv4 ranges such as 203.0.113.0/24."
  }
}

variable "name" {
  description = "Name of the VPC, for the group and the endpoints."
  type        = string
}

variable "region" {
  description = "AWS region, for the names of the services."
  type        = string
}

variable "vpc_id" {
  description = "The VPC; DNS hostnames must be on."
  type        = string
}

variable "cidr" {
  description = "Address range of the VPC."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets, one per zone."
  type        = list(string)
}

variable "services" {
  description = "Services by AWS's short name, such as secretsmanager or ssm."
  type        = list(string)

  validation {
    condition     = alltrue([for service in var.services : can(regex("^[a-z0-9][a-z0-9.-]*$", service))])
    error_message = "services: short names such as secretsmanager or ecr.api, not ${join(", ", [for s in var.services : "\"${s}\"" if !can(regex("^[a-z0-9][a-z0-9.-]*$", s))])}."
  }

  validation {
    condition     = length(distinct(var.services)) == length(var.services)
    error_message = "services names one twice: ${join(", ", var.services)}."
  }

  validation {
    condition     = !contains(var.services, "s3")
    error_message = "services: S3 has a gateway endpoint already, which is free; leave it out."
  }
}

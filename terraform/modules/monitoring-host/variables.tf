variable "name" {
  description = "Name of the host, its role and its security group."
  type        = string
}

variable "env" {
  description = "Environment it watches."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "vpc_id" {
  description = "VPC it is in."
  type        = string
}

variable "subnet_id" {
  description = "Private subnet it is in."
  type        = string
}

variable "zone" {
  description = "Availability zone of that subnet: a volume cannot leave its zone."
  type        = string
}

variable "node_security_group_ids" {
  description = "Security group by role of node; every role in `scrape` must be there."
  type        = map(string)
}

variable "release_keys" {
  description = "Public keys (minisign): the host takes only releases that one of them signed. Empty: any."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for key in var.release_keys : can(regex("^RW[0-9A-Za-z+/]{54}$", key))])
    error_message = "release_keys names ${join(", ", [for key in var.release_keys : key if !can(regex("^RW[0-9A-Za-z+/]{54}$", key))])}; a key is the second line of its .pub file, 56 characters that begin with RW."
  }
}

variable "scrape" {
  description = "Ports with figures by role of node."
  type        = map(list(number))
  default = {
    scheduler = [5555, 9100]
    web       = [8080, 9100]
    worker    = [9100]
  }

  validation {
    condition     = alltrue([for port in flatten(values(var.scrape)) : port >= 1 && port <= 65535 && port != 22])
    error_message = "scrape: a port is a number from 1 to 65535, and never 22: ${join(", ", flatten(values(var.scrape)))}."
  }
}

variable "artifacts_bucket" {
  description = "Bucket with the releases."
  type        = string
}

variable "kms_key_arn" {
  description = "Key that encrypts the bucket and the volume."
  type        = string
}

variable "topic_arn" {
  description = "SNS topic that alerts go to."
  type        = string
}

variable "instance_type" {
  description = "EC2 instance type."
  type        = string
}

variable "volume_gb" {
  description = "Size in GiB of the volume with the figures."
  type        = number

  validation {
    condition     = var.volume_gb >= 10 && var.volume_gb <= 16384
    error_message = "volume_gb is ${var.volume_gb}; it must be between 10 and 16384."
  }
}

variable "image_id" {
  description = "AMI; empty takes the newest Amazon Linux 2023 when the host is made."
  type        = string
  default     = ""
}

variable "release" {
  description = "Release the host boots with."
  type        = string
}

variable "permissions_boundary_arn" {
  description = "Policy that bounds the role; null for none."
  type        = string
  default     = null
}

variable "name" {
  description = "Name of the replication group."
  type        = string
}

variable "node_type" {
  description = "ElastiCache node type."
  type        = string

  validation {
    condition     = startswith(var.node_type, "cache.")
    error_message = "node_type is \"${var.node_type}\"; ElastiCache types start with cache., such as cache.t4g.small."
  }
}

variable "replicas" {
  description = "Replicas beside the primary; with one or more, AWS fails over by itself."
  type        = number

  validation {
    condition     = var.replicas >= 0 && var.replicas <= 5
    error_message = "replicas is ${var.replicas}; AWS takes 0 to 5."
  }
}

variable "deletion_protection" {
  description = "Whether the auth token can be recovered for a week after it was deleted."
  type        = bool
}

variable "subnet_ids" {
  description = "Subnets, one per zone."
  type        = list(string)
}

variable "security_group_id" {
  description = "Who may connect."
  type        = string
}

variable "kms_key_arn" {
  description = "Key for storage and auth token."
  type        = string
}

variable "name" {
  description = "Name of load balancer and target group."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the targets."
  type        = string
}

variable "subnet_ids" {
  description = "Public subnets, one per zone."
  type        = list(string)
}

variable "security_group_id" {
  description = "Who may come in."
  type        = string
}

variable "certificate_arn" {
  description = "ACM certificate of the name people type."
  type        = string

  validation {
    condition     = can(regex("^arn:[^:]+:acm:", var.certificate_arn))
    error_message = "certificate_arn is \"${var.certificate_arn}\"; it must be the ARN of an ACM certificate in this region."
  }
}

variable "health_path" {
  description = "Path that answers 200 while a web node can serve."
  type        = string
}

variable "access_logs_bucket" {
  description = "Bucket that records every request, below web/; null: none does."
  type        = string
  default     = null
}

variable "deletion_protection" {
  description = "Refuse to delete it."
  type        = bool
}

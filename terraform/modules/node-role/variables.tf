variable "name" {
  description = "Name of the IAM role and of the instance profile."
  type        = string
}

variable "env" {
  description = "Environment whose groups a rollout driver may touch."
  type        = string
}

variable "region" {
  description = "AWS region of the groups."
  type        = string
}

variable "account_id" {
  description = "AWS account of the groups."
  type        = string
}

variable "own_groups" {
  description = "Name, or name pattern, of the Auto Scaling groups these nodes are in."
  type        = string
}

variable "buckets" {
  description = "Names of the buckets: artifacts (read) and storage (read and written)."
  type        = object({ artifacts = string, storage = string })
}

variable "secret_arns" {
  description = "Secrets with the logins of database and broker; none where the engines take none."
  type        = list(string)
}

variable "kms_key_arn" {
  description = "Key that encrypts buckets and secrets; empty where there is none."
  type        = string
}

variable "permissions_boundary_arn" {
  description = "Policy that bounds the role; null for none."
  type        = string
  default     = null
}

variable "drives_rollouts" {
  description = "Whether these nodes replace other nodes: true for schedulers."
  type        = bool
  default     = false
}

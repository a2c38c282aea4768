variable "env" {
  description = "Environment: part of every name."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,11}$", var.env))
    error_message = "env is \"${var.env}\"; it must be 2 to 12 lower-case letters and digits, a letter first."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "account_id" {
  description = "AWS account the environment lives in; credentials of another one are refused."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id is \"${var.account_id}\"; it must be the 12 digits of an AWS account."
  }
}

variable "state_bucket" {
  description = "Bucket with the state of all stacks of this environment."
  type        = string
}

variable "permissions_boundary_arn" {
  description = "IAM policy that bounds every role made here, whatever its own policies say; null for none."
  type        = string
  default     = null

  validation {
    condition     = var.permissions_boundary_arn == null || can(regex("^arn:[^:]+:iam::([0-9]{12}|aws):policy/", var.permissions_boundary_arn))
    error_message = "permissions_boundary_arn is \"${coalesce(var.permissions_boundary_arn, "null")}\"; it must be the ARN of an IAM policy, such as arn:aws:iam::123456789012:policy/boundary."
  }
}

variable "ci" {
  description = <<-EOT
    CI jobs that may plan and publish without a key; null (the default): none.
    issuer_url: who signs their tokens.
    issuer_arn: the account's OIDC provider for that issuer, which an account has once; null makes it.
    subjects: which jobs, such as repo:acme/pipelines:ref:refs/heads/main.
    apply_policy_arns: policies that let them apply as well.
  EOT
  type = object({
    issuer_url        = optional(string, "https://token.actions.githubusercontent.com")
    issuer_arn        = optional(string)
    subjects          = list(string)
    apply_policy_arns = optional(list(string), [])
  })
  default = null
}

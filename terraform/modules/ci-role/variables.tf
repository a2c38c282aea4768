variable "env" {
  description = "Environment the job works on."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "account_id" {
  description = "AWS account."
  type        = string
}

variable "buckets" {
  description = "Names of the buckets for states and for artifacts."
  type        = object({ state = string, artifacts = string })
}

variable "issuer_url" {
  description = "Who signs the jobs' tokens, such as https://token.actions.githubusercontent.com."
  type        = string

  validation {
    condition     = can(regex("^https://[^/]+", var.issuer_url))
    error_message = "issuer_url is \"${var.issuer_url}\"; it must start with https://."
  }
}

variable "issuer_arn" {
  description = "The account's OIDC provider for that issuer, which an account has once; null makes it."
  type        = string
}

variable "subjects" {
  description = "Which jobs, as the token's `sub` names them, such as repo:acme/pipelines:ref:refs/heads/main."
  type        = list(string)

  validation {
    condition     = length(var.subjects) > 0 && alltrue([for subject in var.subjects : can(regex("^[a-z_]+:[^*:]+/[^*:]+:.+$", subject)) || can(regex("^project_path:[^*:]+:.+$", subject))])
    error_message = "subjects must name the repository in full and what of it may run, such as repo:acme/pipelines:ref:refs/heads/main: ${join(", ", var.subjects)}."
  }
}

variable "apply_policy_arns" {
  description = "Policies that let the job apply; none: it plans and publishes."
  type        = list(string)
}

variable "permissions_boundary_arn" {
  description = "Policy that bounds the role; null for none."
  type        = string
  default     = null
}

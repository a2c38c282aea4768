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

variable "engines" {
  description = "Database and broker that exist outside the data stack, with any login in the URL; null: the data stack's."
  type        = object({ database_url = string, broker_url = string })
  default     = null
}

variable "release" {
  description = "Release of the first nodes (`deployctl release list`); later changes go through `deployctl roll`."
  type        = string
  default     = "none"
}

variable "release_keys" {
  description = "Public keys of releases (`deployctl release keygen`): nodes take only what one of them signed. Empty: any."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for key in var.release_keys : can(regex("^RW[0-9A-Za-z+/]{54}$", key))])
    error_message = "release_keys: the second line of the .pub file, 56 characters beginning with RW."
  }
}

variable "image_id" {
  description = "AMI; empty takes the newest Amazon Linux 2023, so a plan may change when Amazon releases one."
  type        = string
  default     = ""
}

variable "boot_seconds" {
  description = "How long a node may take to boot and register before its group gives it up."
  type        = number
  default     = 600

  validation {
    condition     = var.boot_seconds >= 30 && var.boot_seconds <= 7200
    error_message = "boot_seconds is ${var.boot_seconds}; AWS takes 30 to 7200."
  }
}

variable "schedulers" {
  description = "nodes: how many run, all active. instance_types: the preferred one first."
  type = object({
    nodes          = optional(number, 2)
    instance_types = optional(list(string), ["m7i.large", "m6i.large"])
  })
  default = {}

  validation {
    condition     = var.schedulers.nodes >= 2 && length(var.schedulers.instance_types) > 0
    error_message = "schedulers: at least two nodes (it has ${var.schedulers.nodes}), or one failure stops every schedule, and one instance type."
  }
}

variable "web" {
  description = "nodes: how many run. instance_types: the preferred one first."
  type = object({
    nodes          = optional(number, 1)
    instance_types = optional(list(string), ["m7i.large", "m6i.large"])
  })
  default = {}

  validation {
    condition     = var.web.nodes >= 0 && length(var.web.instance_types) > 0
    error_message = "web: no fewer than 0 nodes (it has ${var.web.nodes}) and at least one instance type."
  }
}

variable "load_balancer" {
  description = "Whether a public HTTPS load balancer stands before the web; without it, reach a node through Session Manager."
  type        = bool
  default     = false
}

variable "certificate_arn" {
  description = "ACM certificate for the load balancer, in this region."
  type        = string
  default     = ""

  validation {
    condition     = !var.load_balancer || startswith(var.certificate_arn, "arn:")
    error_message = "load_balancer needs certificate_arn, the ARN of an ACM certificate for the name people will type."
  }
}

variable "private_dns" {
  description = "Whether database, broker and web get names in sluice-<env>.internal, which only the VPC resolves."
  type        = bool
  default     = true
}

variable "cloudwatch" {
  description = "Whether a scheduler publishes the heartbeat and the backlog per slot to CloudWatch, once a minute."
  type        = bool
  default     = true
}

variable "deletion_protection" {
  description = "Refuse to delete the load balancer, whose name people's DNS points at."
  type        = bool
  default     = true
}

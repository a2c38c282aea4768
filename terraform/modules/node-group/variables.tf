variable "name" {
  description = "Name of the group, its launch template and its instances."
  type        = string
}

variable "env" {
  description = "Environment the nodes belong to."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "role" {
  description = "What the nodes run: scheduler, web or worker."
  type        = string

  validation {
    condition     = contains(["scheduler", "web", "worker"], var.role)
    error_message = "role is \"${var.role}\"; it must be scheduler, web or worker."
  }
}

variable "pool" {
  description = "Worker pool; empty for other roles."
  type        = string
  default     = ""
}

variable "queues" {
  description = "Queues a worker of this pool consumes."
  type        = list(string)
  default     = []
}

variable "slots" {
  description = "Tasks a worker of this pool runs at once."
  type        = number
  default     = 1
}

variable "engines" {
  description = "URLs without passwords of database and broker, and the secrets with their logins (\"\": none)."
  type = object({
    database_url        = string
    database_secret_arn = string
    broker_url          = string
    broker_secret_arn   = string
  })
}

variable "buckets" {
  description = "Names of the buckets for artifacts and for storage."
  type        = object({ artifacts = string, storage = string })
}

variable "min_size" {
  description = "Fewest instances. Raising it launches at once; lowering it terminates none."
  type        = number

  validation {
    condition     = var.min_size >= 0 && floor(var.min_size) == var.min_size
    error_message = "min_size is ${var.min_size}; it must be a whole number from 0 up."
  }
}

variable "max_size" {
  description = "Most instances, the one or more that a rollout launches first included."
  type        = number

  validation {
    condition     = var.max_size > var.min_size
    error_message = "max_size is ${var.max_size}; it must be above min_size, which is ${var.min_size}, or no rollout has room."
  }
}

variable "spot_percent" {
  description = "Share of spot instances, 0 to 100; a spot instance is drained on AWS's two minutes' notice."
  type        = number
  default     = 0

  validation {
    condition     = var.spot_percent >= 0 && var.spot_percent <= 100
    error_message = "spot_percent is ${var.spot_percent}; it must be between 0 and 100."
  }
}

variable "container_credentials" {
  description = "Whether tasks in containers may ask the metadata service for the node's credentials (a second network hop)."
  type        = bool
  default     = false
}

variable "subnet_ids" {
  description = "Subnets to spread the nodes over."
  type        = list(string)
}

variable "security_group_id" {
  description = "Security group of the role."
  type        = string
}

variable "instance_profile_name" {
  description = "Instance profile with what the nodes may do."
  type        = string
}

variable "instance_profile_arn" {
  description = "The same profile's ARN: the group waits for it to exist."
  type        = string
}

variable "instance_types" {
  description = "Instance types, the preferred one first."
  type        = list(string)

  validation {
    condition     = length(var.instance_types) > 0 && length(distinct(var.instance_types)) == length(var.instance_types)
    error_message = "instance_types must name at least one type, and none twice: ${join(", ", var.instance_types)}."
  }
}

variable "image_id" {
  description = "AMI; empty takes the newest Amazon Linux 2023, which changes with Amazon's releases."
  type        = string
  default     = ""
}

variable "volume_gb" {
  description = "Size of the root volume in GiB."
  type        = number
  default     = 30
}

variable "release" {
  description = "Release of the first nodes. Later `deployctl` changes the group's tag and Terraform leaves it alone."
  type        = string
}

variable "release_keys" {
  description = "Public keys (minisign): nodes take only releases that one of them signed. Empty: any."
  type        = list(string)
  default     = []
}

variable "boot_seconds" {
  description = "How long a node may take to boot and register before the group gives it up."
  type        = number
}

variable "drain_seconds" {
  description = "How long a drain may wait for running tasks."
  type        = number

  validation {
    condition     = var.drain_seconds >= 1 && var.drain_seconds <= 144000
    error_message = "drain_seconds is ${var.drain_seconds}; it must be between 1 and 144000 (40 hours): a lifecycle hook holds an instance for 48 hours at most."
  }
}

variable "protect_from_scale_in" {
  description = "Whether only `deployctl` may pick which node goes."
  type        = bool
  default     = false
}

variable "target_group_arns" {
  description = "Load balancer target groups the nodes join."
  type        = list(string)
  default     = []
}

variable "scaling_tags" {
  description = "Tags of the group, not of its instances, that tell the schedulers how to scale it; none: by hand."
  type        = map(string)
  default     = {}
}

variable "cloudwatch" {
  description = "Whether these nodes publish heartbeat and backlog to CloudWatch: for schedulers."
  type        = bool
  default     = false
}

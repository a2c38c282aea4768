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

variable "pools" {
  description = <<-EOT
    Worker pools by name.
    workers: how many run at the least, and from the first apply on; `var.workers` overrides it.
    max_workers: most that may run, a rollout's surge aside.
    scale_to_zero: whether `workers` may be 0; then nothing runs until a task asks for it.
    slots: tasks one worker runs at once.
    queues: queues its workers consume; a queue is in one pool only.
    instance_types: the preferred one first.
    spot_percent: share of spot instances, 0 to 100; they are drained on two minutes' notice.
    volume_gb: root volume in GiB.
    drain_seconds: how long a drain waits for running tasks; longer than the pool's longest task.
    container_credentials: whether tasks in containers may have the node's credentials.
    scaling: who changes how many run: none (you), sluice (the schedulers), target-tracking (AWS, by backlog_per_slot).
    cooldown_seconds: sluice: how long a node that was needed stays.
    target_wait_seconds: sluice: within this time a waiting task should be done; long ones get a slot each.
    backlog_per_slot: target-tracking: tasks that wait or run for each slot; needs cloudwatch = true in control.
  EOT
  type = map(object({
    workers               = optional(number, 2)
    max_workers           = optional(number, 10)
    scale_to_zero         = optional(bool, false)
    slots                 = optional(number, 4)
    queues                = optional(list(string), ["default"])
    instance_types        = optional(list(string), ["m7i.large", "m6i.large"])
    spot_percent          = optional(number, 0)
    volume_gb             = optional(number, 50)
    drain_seconds         = optional(number, 3600)
    container_credentials = optional(bool, false)
    scaling               = optional(string, "none")
    cooldown_seconds      = optional(number, 300)
    target_wait_seconds   = optional(number, 60)
    backlog_per_slot      = optional(number, 1)
  }))

  validation {
    condition     = alltrue([for name in keys(var.pools) : can(regex("^[a-z][a-z0-9-]{0,19}$", name))])
    error_message = "pools: a name is at most 20 lower-case letters, digits and dashes, a letter first; not ${join(", ", [for name in keys(var.pools) : "\"${name}\"" if !can(regex("^[a-z][a-z0-9-]{0,19}$", name))])}."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : pool.workers >= 0 && pool.workers <= pool.max_workers && floor(pool.workers) == pool.workers])
    error_message = "pools: workers must be a whole number between 0 and max_workers: ${join(", ", [for name, pool in var.pools : "${name} has ${pool.workers} of ${pool.max_workers}"])}."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : pool.workers != 0 || pool.scale_to_zero])
    error_message = "pools: ${join(", ", [for name, pool in var.pools : name if pool.workers == 0 && !pool.scale_to_zero])} has 0 workers; set scale_to_zero = true if that is meant."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : pool.slots >= 1 && length(pool.queues) > 0 && length(pool.instance_types) > 0])
    error_message = "pools: a pool needs at least one slot, one queue and one instance type."
  }

  validation {
    condition     = alltrue([for queue in flatten([for pool in values(var.pools) : pool.queues]) : can(regex("^[a-zA-Z0-9_.-]+$", queue))])
    error_message = "pools: a queue's name is letters, digits, dots, dashes and underscores: ${join(", ", flatten([for pool in values(var.pools) : pool.queues]))}."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : length(join(" ", pool.queues)) <= 256])
    error_message = "pools: the names of a pool's queues are 256 characters at most, all together: AWS keeps them in a tag."
  }

  validation {
    condition     = length(flatten([for pool in values(var.pools) : pool.queues])) == length(distinct(flatten([for pool in values(var.pools) : pool.queues])))
    error_message = "pools: a queue is in one pool only, and once: ${join("; ", [for name, pool in var.pools : "${name} has ${join(", ", pool.queues)}"])}."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : pool.spot_percent >= 0 && pool.spot_percent <= 100])
    error_message = "pools: spot_percent must be between 0 and 100: ${join(", ", [for name, pool in var.pools : "${name} has ${pool.spot_percent}"])}."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : pool.volume_gb >= 8 && pool.volume_gb <= 16384])
    error_message = "pools: volume_gb must be between 8 and 16384: ${join(", ", [for name, pool in var.pools : "${name} has ${pool.volume_gb}"])}."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : contains(["none", "sluice", "target-tracking"], pool.scaling)])
    error_message = "pools: scaling is none, sluice or target-tracking: ${join(", ", [for name, pool in var.pools : "${name} has \"${pool.scaling}\""])}."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : pool.cooldown_seconds >= 0 && pool.target_wait_seconds > 0 && pool.backlog_per_slot > 0])
    error_message = "pools: cooldown_seconds is 0 or more, target_wait_seconds and backlog_per_slot are above 0."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : pool.drain_seconds >= 1 && pool.drain_seconds <= 144000])
    error_message = "pools: drain_seconds must be between 1 and 144000 (40 hours): a lifecycle hook holds an instance for 48 hours at most."
  }
}

variable "workers" {
  description = "The knob: how many workers a pool runs at the least, by pool; pools not named keep their own number."
  type        = map(number)
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.workers) : contains(keys(var.pools), name)])
    error_message = "workers names a pool that does not exist: ${join(", ", setsubtract(keys(var.workers), keys(var.pools)))}. The pools are ${join(", ", keys(var.pools))}."
  }

  validation {
    condition     = alltrue([for count in values(var.workers) : count >= 0 && floor(count) == count])
    error_message = "workers must be whole numbers from 0 up: ${join(", ", [for name, count in var.workers : "${name} = ${count}"])}."
  }

  validation {
    condition     = alltrue([for name, count in var.workers : count <= try(var.pools[name].max_workers, count)])
    error_message = "workers above the pool's max_workers: ${join(", ", [for name, count in var.workers : "${name} = ${count} of ${try(var.pools[name].max_workers, count)}"])}."
  }

  validation {
    condition     = alltrue([for name, count in var.workers : count != 0 || try(var.pools[name].scale_to_zero, true)])
    error_message = "workers: ${join(", ", [for name, count in var.workers : "${name} = ${count}"])}; a pool without scale_to_zero keeps at least one."
  }
}

variable "secret_arns" {
  description = "Further secrets that tasks may read, such as the warehouse's; encrypted with the data stack's key or AWS's own."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.secret_arns : can(regex("^arn:[^:]+:secretsmanager:[^:*]+:[0-9]{12}:secret:[^*]+", arn))])
    error_message = "secret_arns: each is the ARN of one secret: ${join(", ", var.secret_arns)}."
  }
}

variable "surge" {
  description = "Instances above max_workers that a rollout may launch before it drains old ones."
  type        = number
  default     = 1

  validation {
    condition     = var.surge >= 1
    error_message = "surge is ${var.surge}; a rollout needs room for at least 1."
  }
}

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
    slots: tasks one worker runs at once.
    queues: queues its workers consume.
    instance_types: the preferred one first.
    volume_gb: root volume in GiB.
    drain_seconds: how long a drain waits for running tasks; longer than the pool's longest task.
  EOT
  type = map(object({
    workers        = optional(number, 2)
    max_workers    = optional(number, 10)
    slots          = optional(number, 4)
    queues         = optional(list(string), ["default"])
    instance_types = optional(list(string), ["m7i.large", "m6i.large"])
    volume_gb      = optional(number, 50)
    drain_seconds  = optional(number, 3600)
  }))

  validation {
    condition     = alltrue([for name in keys(var.pools) : can(regex("^[a-z][a-z0-9-]{0,19}$", name))])
    error_message = "pools: a name is at most 20 lower-case letters, digits and dashes, a letter first."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : pool.workers >= 0 && pool.workers <= pool.max_workers])
    error_message = "pools: workers must be between 0 and max_workers: ${join(", ", [for name, pool in var.pools : "${name} has ${pool.workers} of ${pool.max_workers}"])}."
  }

  validation {
    condition     = alltrue([for pool in values(var.pools) : pool.slots >= 1 && length(pool.queues) > 0 && length(pool.instance_types) > 0])
    error_message = "pools: a pool needs at least one slot, one queue and one instance type."
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

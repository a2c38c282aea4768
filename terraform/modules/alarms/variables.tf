variable "env" {
  description = "Environment, part of every alarm's name."
  type        = string
}

variable "topic_arn" {
  description = "SNS topic that alarms go to, when they begin and when they are over."
  type        = string
}

variable "heartbeat_minutes" {
  description = "Minutes without one successful heartbeat run after which it alarms."
  type        = number
  default     = 5

  validation {
    condition     = var.heartbeat_minutes >= 2 && var.heartbeat_minutes <= 60 && floor(var.heartbeat_minutes) == var.heartbeat_minutes
    error_message = "heartbeat_minutes is ${var.heartbeat_minutes}; it must be a whole number from 2 (one run may be late) to 60."
  }
}

variable "database" {
  description = "The instance, and when it is too full: CPU in percent, free storage in GiB, connections."
  type = object({
    id          = string
    cpu_percent = optional(number, 80)
    free_gb     = optional(number, 10)
    connections = optional(number, 300)
  })

  validation {
    condition     = var.database.cpu_percent > 0 && var.database.cpu_percent < 100 && var.database.free_gb > 0 && var.database.connections > 0
    error_message = "database: cpu_percent (${var.database.cpu_percent}) is between 0 and 100, free_gb (${var.database.free_gb}) and connections (${var.database.connections}) are above 0."
  }
}

variable "broker" {
  description = "The broker's nodes, and how much of their memory may be used, in percent."
  type = object({
    members        = list(string)
    memory_percent = optional(number, 75)
  })

  validation {
    condition     = var.broker.memory_percent > 0 && var.broker.memory_percent < 100
    error_message = "broker: memory_percent is ${var.broker.memory_percent}; it must be between 0 and 100."
  }
}

variable "dead_letter_queue" {
  description = "SQS queue that gets lifecycle events nobody could take."
  type        = string
}

variable "web" {
  description = "What CloudWatch calls the load balancer and its target group; null without one."
  type        = map(string)
  default     = null
}

variable "name" {
  description = "Name of the replication instance and prefix of what belongs to it."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "vpc_id" {
  description = "VPC it is in."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets, one per zone: the sources must be reachable from them."
  type        = list(string)
}

variable "kms_key_arn" {
  description = "Key for storage and endpoints, and of the secrets."
  type        = string
}

variable "sources" {
  description = <<-EOT
    Databases to copy, by a short name.
    engine: postgres, mysql, mariadb, oracle or sqlserver.
    database: name of the database.
    secret_arn: secret holding {username, password, host, port}.
    tables: what to copy, as schema.table; % stands for any letters.
  EOT
  type = map(object({
    engine     = optional(string, "postgres")
    database   = string
    secret_arn = string
    tables     = optional(list(string), ["public.%"])
  }))

  validation {
    condition     = alltrue([for name in keys(var.sources) : can(regex("^[a-z][a-z0-9-]{0,19}$", name))])
    error_message = "sources: a name is at most 20 lower-case letters, digits and dashes, a letter first: ${join(", ", keys(var.sources))}."
  }

  validation {
    condition     = alltrue([for source in values(var.sources) : contains(["postgres", "mysql", "mariadb", "oracle", "sqlserver"], source.engine)])
    error_message = "sources: engine must be postgres, mysql, mariadb, oracle or sqlserver: ${join(", ", [for name, source in var.sources : "${name} has ${source.engine}"])}."
  }

  validation {
    condition     = alltrue([for table in flatten([for source in values(var.sources) : source.tables]) : can(regex("^[^.]+[.][^.]+$", table))])
    error_message = "sources: a table is schema.table, such as public.orders: ${join(", ", flatten([for source in values(var.sources) : source.tables]))}."
  }

  validation {
    condition     = alltrue([for source in values(var.sources) : can(regex("^arn:[^:]+:secretsmanager:", source.secret_arn))])
    error_message = "sources: secret_arn must be the ARN of a secret: ${join(", ", [for name, source in var.sources : "${name} has \"${source.secret_arn}\""])}."
  }
}

variable "target" {
  description = "The warehouse: secret_arn holds {username, password, host, port} of a login that may write; security_group_id is its group."
  type        = object({ secret_arn = string, security_group_id = string })

  validation {
    condition     = can(regex("^arn:[^:]+:secretsmanager:", var.target.secret_arn))
    error_message = "target: secret_arn is \"${var.target.secret_arn}\"; it must be the ARN of a secret with {username, password, host, port}."
  }
  validation {
    condition     = var.target.security_group_id != null
    error_message = "There is no warehouse to copy into: set `warehouse` in the stack warehouse first."
  }
}

variable "instance_class" {
  description = "DMS instance class."
  type        = string

  validation {
    condition     = startswith(var.instance_class, "dms.")
    error_message = "instance_class is \"${var.instance_class}\"; DMS classes start with dms., such as dms.t3.medium."
  }
}

variable "storage_gb" {
  description = "Storage in GiB for changes that wait."
  type        = number
}

variable "multi_az" {
  description = "Whether a standby in another zone takes over."
  type        = bool
}

variable "account_role" {
  description = "Whether to make dms-vpc-role, which an account has once; false where it is there already."
  type        = bool
}

variable "permissions_boundary_arn" {
  description = "Policy that bounds the roles; null for none."
  type        = string
  default     = null
}

# AWS Database Migration Service: copies databases into the warehouse, and every change after that.

data "aws_partition" "this" {}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["dms.${var.region}.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "secrets" {
  statement {
    sid       = "ReadLogins"
    actions   = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"]
    resources = distinct(concat([var.target.secret_arn], [for source in values(var.sources) : source.secret_arn]))
  }

  statement {
    sid       = "UseKey"
    actions   = ["kms:Decrypt"]
    resources = [var.kms_key_arn]
  }
}

resource "aws_iam_role" "secrets" {
  name                 = var.name
  assume_role_policy   = data.aws_iam_policy_document.assume.json
  permissions_boundary = var.permissions_boundary_arn
}

resource "aws_iam_role_policy" "secrets" {
  name   = "secrets"
  role   = aws_iam_role.secrets.id
  policy = data.aws_iam_policy_document.secrets.json
}

# DMS looks for this role by this name, one for the whole account.
data "aws_iam_policy_document" "assume_account" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["dms.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "vpc" {
  count                = var.account_role ? 1 : 0
  name                 = "dms-vpc-role"
  assume_role_policy   = data.aws_iam_policy_document.assume_account.json
  permissions_boundary = var.permissions_boundary_arn
}

resource "aws_iam_role_policy_attachment" "vpc" {
  count      = var.account_role ? 1 : 0
  role       = aws_iam_role.vpc[0].name
  policy_arn = "arn:${data.aws_partition.this.partition}:iam::aws:policy/service-role/AmazonDMSVPCManagementRole"
}

resource "aws_security_group" "this" {
  name        = var.name
  description = "replication into the warehouse"
  vpc_id      = var.vpc_id
  tags        = { Name = var.name }
}

# Sources are wherever they are.
resource "aws_vpc_security_group_egress_rule" "anywhere" {
  security_group_id = aws_security_group.this.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
  description       = "sources, target, secrets"
}

resource "aws_vpc_security_group_ingress_rule" "warehouse" {
  security_group_id            = var.target.security_group_id
  referenced_security_group_id = aws_security_group.this.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
  description                  = "replication to warehouse"
}

resource "aws_dms_replication_subnet_group" "this" {
  replication_subnet_group_id          = var.name
  replication_subnet_group_description = "Replication into the warehouse"
  subnet_ids                           = var.subnet_ids
  depends_on                           = [aws_iam_role_policy_attachment.vpc]
}

resource "aws_dms_replication_instance" "this" {
  replication_instance_id      = var.name
  replication_instance_class   = var.instance_class
  allocated_storage            = var.storage_gb
  multi_az                     = var.multi_az
  publicly_accessible          = false
  auto_minor_version_upgrade   = true
  apply_immediately            = true
  kms_key_arn                  = var.kms_key_arn
  replication_subnet_group_id  = aws_dms_replication_subnet_group.this.id
  vpc_security_group_ids       = [aws_security_group.this.id]
  preferred_maintenance_window = "sun:06:30-sun:07:30" # UTC
}

resource "aws_dms_endpoint" "source" {
  # checkov:skip=CKV2_AWS_49:TLS where the engine can do it without a certificate of the source's own
  for_each                        = var.sources
  endpoint_id                     = "${var.name}-from-${each.key}"
  endpoint_type                   = "source"
  engine_name                     = each.value.engine
  database_name                   = each.value.database
  ssl_mode                        = each.value.engine == "postgres" ? "require" : "none" # MySQL's needs a certificate given
  secrets_manager_arn             = each.value.secret_arn
  secrets_manager_access_role_arn = aws_iam_role.secrets.arn
  kms_key_arn                     = var.kms_key_arn
  depends_on                      = [aws_iam_role_policy.secrets]
}

resource "aws_dms_endpoint" "target" {
  endpoint_id                     = "${var.name}-to-warehouse"
  endpoint_type                   = "target"
  engine_name                     = "postgres"
  database_name                   = "warehouse"
  ssl_mode                        = "require"
  secrets_manager_arn             = var.target.secret_arn
  secrets_manager_access_role_arn = aws_iam_role.secrets.arn
  kms_key_arn                     = var.kms_key_arn
  depends_on                      = [aws_iam_role_policy.secrets]
}

resource "aws_dms_replication_task" "this" {
  for_each                 = var.sources
  replication_task_id      = "${var.name}-${each.key}"
  migration_type           = "full-load-and-cdc"
  replication_instance_arn = aws_dms_replication_instance.this.replication_instance_arn
  source_endpoint_arn      = aws_dms_endpoint.source[each.key].endpoint_arn
  target_endpoint_arn      = aws_dms_endpoint.target.endpoint_arn

  table_mappings = jsonencode({
    rules = [
      for i, table in each.value.tables : {
        rule-type      = "selection"
        rule-id        = tostring(i + 1)
        rule-name      = tostring(i + 1)
        rule-action    = "include"
        object-locator = { schema-name = split(".", table)[0], table-name = split(".", table)[1] }
      }
    ]
  })
}
